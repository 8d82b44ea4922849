"""Rewards, one number per answer; each a function that a config names.

A reward is a function of `text` (what the model wrote), `answer` (the right
one), `example` (the question it belongs to), `length` (tokens that were
sampled) and `ended` (whether it ends), whichever it names.
"""

from mmrl.rewards.answer import answer_format, exact_answer
from mmrl.rewards.length import soft_overlong

__all__ = ["answer_format", "exact_answer", "soft_overlong"]
