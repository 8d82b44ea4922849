"""The page that a run ends with: curves, scores, and answers as it saw them."""
