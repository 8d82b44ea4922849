"""Rewards [P, G]; each a function that a config names.

A reward that names `text` (P lists of G answers as the model wrote them),
`answer` (P right ones) or `example` (P questions they belong to) runs on the
host, is called once for a whole batch, and may name `length` and `ended`, too.
One that names arrays alone runs on the devices: `length` [P, G] (tokens that
were sampled), `ended` [P, G] (whether it ends), `mask`, `tokens`, `prompt`, and
what the probes of the run add, such as `attention_old`.
"""

from mmrl.rewards.answer import answer_format, exact_answer
from mmrl.rewards.length import soft_overlong

__all__ = ["answer_format", "exact_answer", "soft_overlong"]
