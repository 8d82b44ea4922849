"""Chain-of-Comparison: a judge compares two descriptions in four steps.

Reference: arXiv 2409.13980, section 4.5 and appendix A.4. Prompts in our own
words.
Reconstructed: which word is the verdict, and what is done without one.
"""

from collections.abc import Generator, Mapping, Sequence
import json
import math
import re
from typing import Any

import numpy as np

from mmrl.data import Example
from mmrl.marks import marked
from mmrl.strategies import wording
from mmrl.strategies.ask import (
  Answer,
  Ask,
  Steps,
  Unanswered,
  shown,
  user,
  written,
)

STEPS: Mapping[str, str] = {
  "perception": "What does each description let you see at first glance?",
  "incongruity": "What in each description is odd or stands out?",
  "context": "What does each description say about what surrounds it?",
  "question": "How does each description help to answer the question?",
}
_VERDICTS = {"true": 1, "false": -1, "equal": 0}
_WORDS = re.compile(r"\b(true|false|equal)\b", re.IGNORECASE)


@marked(asks=("judge",))
def chain_of_comparison(example: Example, *, direct: bool = False) -> Steps:
  """Compares the two `answers` of a question: a caption, then a description.

  Args:
    example: the question and both texts.
    direct: whether the judge is asked once, without steps: the control.

  Returns:
    JSON of {step: 1 if the second text is better, -1 if the first is, 0 if they
    are equal, null if the judge said neither, asked twice}.

  Raises:
    Unanswered: if there aren't two texts, or the judge never gave a verdict.
  """
  if len(example.answers) != 2:
    raise Unanswered(
      "expected two texts in 'answers', a caption and a description, found"
      f" {len(example.answers)}"
    )
  steps = {"direct": ""} if direct else STEPS
  one, other = example.answers
  found = yield from coc_judge(example, one, other, steps)
  if all(verdict is None for verdict in found.values()):
    raise Unanswered("found no verdict in any reply of the judge")
  return Answer(json.dumps(found), {"verdicts": found})


def coc_judge(
  example: Example, one: str, other: str, steps: Mapping[str, str] = STEPS
) -> Generator[Ask, Any, dict[str, int | None]]:
  """Asks a judge for each step in turn, a second time without a verdict."""
  pictures, question = shown(example.messages), written(example.messages)
  found: dict[str, int | None] = {}
  told = ""
  for name, step in steps.items():
    asked = wording.fill(
      "cvr_compare",
      question=question,
      one=one,
      other=other,
      told=told,
      step=step,
    )
    found[name] = None
    for _ in range(2):
      reply = yield Ask("judge", user(asked, pictures))
      found[name] = parse_verdict(reply.text)
      if found[name] is not None:
        break
    told += f"\n{step}\n{reply.text}\n"
  return found


def parse_verdict(text: str) -> int | None:
  """Reads a verdict, the last such word: True 1, False -1, Equal 0."""
  found = _WORDS.findall(text)
  return _VERDICTS[found[-1].lower()] if found else None


def coc_report(
  verdicts: Sequence[Sequence[int | None]],
) -> dict[str, list[float]]:
  """Computes how often the second text is better, equal or worse, in percent.

  Args:
    verdicts: 1, 0 or -1 of each step; None isn't counted.

  Returns:
    `better`, `equal` and `worse`, each of every step and, last, the mean over
    the steps; NaN of a step without a verdict, which the mean leaves out.
  """
  values = np.array(
    [[math.nan if x is None else x for x in row] for row in verdicts], float
  )
  known = np.isfinite(values).sum(0)
  found = {}
  for name, verdict in (("better", 1), ("equal", 0), ("worse", -1)):
    counts = (values == verdict).sum(0)
    shares = np.full(len(known), math.nan)
    np.divide(100.0 * counts, known, where=known > 0, out=shares)
    there = shares[known > 0]
    mean = float(there.mean()) if len(there) else math.nan
    found[name] = [*shares.tolist(), mean]
  return found
