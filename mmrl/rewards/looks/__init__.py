"""Rewards of where a policy looks while it answers, and how it is told to."""
