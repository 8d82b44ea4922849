"""Benchmarks: held-out questions, how answers are graded, what is reported.

A name here is what a spec of `config.evaluation.benchmarks` calls, with the
spec's options and the spec's place in the config as `field`, for errors. It
returns a `benchmarks.contract.Benchmark`.
"""

from mmrl.benchmarks.blind import without_pictures
from mmrl.benchmarks.causal.pairs import causal_pairs
from mmrl.benchmarks.choosing.mme import mme
from mmrl.benchmarks.choosing.winoground import winoground
from mmrl.benchmarks.choosing.yes_no import yes_no
from mmrl.benchmarks.frames import frames
from mmrl.benchmarks.objects import objects
from mmrl.benchmarks.scored import questions

__all__ = [
  "causal_pairs",
  "frames",
  "mme",
  "objects",
  "questions",
  "winoground",
  "without_pictures",
  "yes_no",
]
