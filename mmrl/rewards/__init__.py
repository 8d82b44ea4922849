"""Rewards, [P, G], computed by functions that a config names.

A reward with an argument `text` (P lists of G answers as the model wrote them),
`answer` (P right answers) or `example` (P questions) runs on the host. It is
called once for a whole batch, and may also have arguments `length` and `ended`.
A reward with array arguments only runs on the devices. It may read `length`
[P, G] (number of sampled tokens), `ended` [P, G] (whether the answer ends),
`mask`, `tokens`, `prompt`, and the fields that the run's probes add, such as
`attention_old`. Those on the host are also what benchmarks score answers by.
"""

from mmrl.rewards.answer import answer_format, exact_answer
from mmrl.rewards.length import soft_overlong

__all__ = ["answer_format", "exact_answer", "soft_overlong"]
