"""Rewards of what an answer's thought says, and whether the answer follows."""
