"""Rewards of what an answer says that is seen: visual facts, and who judges."""
