"""People drawn by lines, as a video generator draws them: with faults."""
