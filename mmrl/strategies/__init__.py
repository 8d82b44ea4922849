"""Ways to answer a question by asking models, more than once or more than one.

A strategy is a generator function that reads like a paper's figure: it yields
what it asks, is sent what was replied, and returns the answer.

    def look_twice(example: Example, *, words: int = 10) -> Steps:
      \"""Answers with a description at hand.\"""
      look = f"Describe in {words} words what helps to tell: "
      pictures = shown(example.messages)
      seen = yield Ask("eyes", user(look + example.question, pictures))
      hint = f"{example.question} It was described so: {seen.text}"
      reply = yield Ask("policy", user(hint, pictures))
      return Answer(reply.text, {"seen": seen.text})

A list of `Ask`s is answered side by side, by a list of replies. A request that
fails for good raises `AskFailed` at its yield, which ends this question, unless
the strategy catches it; to give up, a strategy raises `Unanswered`. It does no
I/O and knows nothing of batches: `run` drives it on many examples at a time,
on models by role, and records everything that was said.

    small = responders.local_model(hub.load("tiny"), length=64)
    found = run(look_twice, questions, {"eyes": small, "policy": large})

A config names a strategy of this package as it names a loss, its keyword-only
arguments being the options; `build.bind`, with "example" provided, makes what
`run` takes.
"""

from mmrl.strategies.ask import Answer as Answer
from mmrl.strategies.ask import Ask as Ask
from mmrl.strategies.ask import AskFailed as AskFailed
from mmrl.strategies.ask import Failure as Failure
from mmrl.strategies.ask import Reply as Reply
from mmrl.strategies.ask import Request as Request
from mmrl.strategies.ask import Responder as Responder
from mmrl.strategies.ask import Steps as Steps
from mmrl.strategies.ask import Strategy as Strategy
from mmrl.strategies.ask import Unanswered as Unanswered
from mmrl.strategies.ask import behind as behind
from mmrl.strategies.ask import shown as shown
from mmrl.strategies.ask import user as user
from mmrl.strategies.ask import written as written
from mmrl.strategies.cvr.comparing import chain_of_comparison
from mmrl.strategies.cvr.describing import cvr_llm
from mmrl.strategies.direction import delta_logp as delta_logp
from mmrl.strategies.direction import direction_gate as direction_gate
from mmrl.strategies.direction import direction_stats as direction_stats
from mmrl.strategies.direction import extrapolated_logits as extrapolated_logits
from mmrl.strategies.direction import replacement_gate as replacement_gate
from mmrl.strategies.extrapolation import Extrapolated as Extrapolated
from mmrl.strategies.extrapolation import extrapolate as extrapolate
from mmrl.strategies.extrapolation import extrapolation
from mmrl.strategies.extrapolation import selective_step as selective_step
from mmrl.strategies.frames import frame_scores
from mmrl.strategies.frames import two_rounds as two_rounds
from mmrl.strategies.plain import (
  best_of_n,
  chain_of_thought,
  direct,
  self_consistency,
)
from mmrl.strategies.proreason import proreason
from mmrl.strategies.queues import Count as Count
from mmrl.strategies.runner import Result as Result
from mmrl.strategies.runner import Run as Run
from mmrl.strategies.runner import each as each
from mmrl.strategies.runner import run as run
from mmrl.strategies.vic import vic

# What a config may name; the other names are for those who write or run it.
__all__ = [
  "best_of_n",
  "chain_of_comparison",
  "chain_of_thought",
  "cvr_llm",
  "direct",
  "extrapolation",
  "frame_scores",
  "proreason",
  "self_consistency",
  "vic",
]
