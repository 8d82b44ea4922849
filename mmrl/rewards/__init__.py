"""Rewards, one number per answer; each a function that a config names.

A reward is a function of `text` (what the model wrote), `answer` (the right
one) and `example` (the question it belongs to), whichever it names.
"""

from mmrl.rewards.answer import answer_format, exact_answer

__all__ = ["answer_format", "exact_answer"]
