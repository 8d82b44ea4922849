"""Answers in several turns: what replies to a policy that asks."""
