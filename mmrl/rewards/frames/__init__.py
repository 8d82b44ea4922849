"""Rewards of what is said to be wrong with a generated frame: REACT."""
