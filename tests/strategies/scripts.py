"""Models of tests that reply from a list, in turn, and note what was asked."""

import functools
import random

from mmrl.data import Example
from mmrl.strategies import run, user, written
from mmrl.strategies.responders import Scripted

PICTURE = {"type": "image", "image": "a.png"}


class Turns:
  """Replies in turn; the last reply is repeated."""

  def __init__(self, *replies):
    self.replies, self.asked = replies, []

  def __call__(self, ask):
    self.asked.append(ask)
    found = self.replies[min(len(self.asked), len(self.replies)) - 1]
    return found(ask) if callable(found) else found

  @property
  def texts(self):
    return [written(ask.messages) for ask in self.asked]


def question(text="how many?", pictures=(PICTURE,), **fields) -> Example:
  return Example("a", text, user(text, pictures), **{"answer": "7", **fields})


def answer(strategy, example=None, options=None, **turns):
  """Runs a strategy on one question with models of these turns."""
  models = {role: Scripted(one) for role, one in turns.items()}
  bound = functools.partial(strategy, **(options or {}))
  example = example or question()
  return run(bound, [example], models, attempts=1).results[0]


def garbage(count=1000, seed=0):
  """Random replies, many with pieces of what parsers look for."""
  rng = random.Random(seed)
  pieces = [
    *"{}[]'\":,.\\\n\t 0é∞\x00",
    *("Thought", "EXPERT name", "Question", "Vision Expert", "'", '"', "True"),
    *("Reasoning steps:", "Answer:", "CAN_SOLVE", "Final Answer:", "1e999"),
    *(
      "<answer>",
      "</answer>",
      "\\boxed{",
      "false",
      "equal",
      "10",
      "nan",
      "\\d",
    ),
    *("cannot provide", "Step-by-step reasoning", "[1, 2", "{" * 300, "-"),
  ]
  for _ in range(count):
    yield "".join(rng.choices(pieces, k=rng.randrange(0, 30)))
