"""Answers to single questions, and a picture of their attention."""
