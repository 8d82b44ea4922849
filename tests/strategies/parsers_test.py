"""What reads a model's text never raises, whatever the text is."""

import math

import pytest
from texts import random_texts

from mmrl.benchmarks.choosing import yes_no
from mmrl.chains import parsing
from mmrl.rewards import answer, boxes, lenient, numbers
from mmrl.rewards.facts import lines, verdicts
from mmrl.rewards.frames import reply
from mmrl.rewards.looks import back
from mmrl.strategies.cvr import comparing, retrieval
from mmrl.strategies.plain import parse_mark
from mmrl.strategies.proreason import parse_dispatch
from mmrl.strategies.vic import parse_chain

# By name: what reads a text, and whether what it finds is such a thing.
PARSERS = {
  "block": (answer.extract, lambda x: x is None or x == x.strip()),
  "box of LaTeX": (
    lambda text: answer.extract(text, "boxed"),
    lambda x: x is None or x == x.strip(),
  ),
  "box": (boxes.parse, lambda x: x is None or (x[0] < x[2] and x[1] < x[3])),
  "number": (numbers.parse, lambda x: x is None or math.isfinite(x[0])),
  "tidied": (lenient.tidy, lambda x: isinstance(x, str)),
  "verdicts": (verdicts.parse, lambda x: all(0 <= v <= 1 for v in x)),
  "lines": (lines.is_formed, lambda x: type(x) is bool),
  "frame": (reply.parse, lambda x: x is None or 1 <= x.score <= 5),
  "segment": (back.is_formed, lambda x: type(x) is bool),
  "chain": (parsing.parse_chain, lambda x: all(map(math.isfinite, x.times))),
  "times": (parsing.times, lambda x: all(map(math.isfinite, x))),
  "hour": (parsing.hour, lambda x: x is None or 1 <= x <= 12),
  "yes or no": (yes_no.verdict, lambda x: x in ("yes", "no", None)),
  "mark": (parse_mark, lambda x: x is None or 0 <= x <= 10),
  "dispatch": (parse_dispatch, lambda x: x is None or len(x) == 2),
  "dispatch as published": (
    lambda text: parse_dispatch(text, strict_upstream=True),
    lambda x: x is None or len(x) == 2,
  ),
  "plan": (parse_chain, lambda x: x is None or all(map(str.strip, x))),
  "plan as published": (
    lambda text: parse_chain(text, strict_upstream=True),
    lambda x: x is None or all(map(str.strip, x)),
  ),
  "verdict": (comparing.parse_verdict, lambda x: x in (1, 0, -1, None)),
  "embedding": (
    retrieval.parse_embedding,
    lambda x: x is None or all(map(math.isfinite, x)),
  ),
}


@pytest.mark.parametrize("name", PARSERS)
def test_any_text_is_read(name):
  read, fits = PARSERS[name]
  found = [read(text) for text in random_texts()]
  assert all(map(fits, found))


def test_texts_have_what_is_looked_for():
  """Of most things some texts have one, so that more than "none" is tested."""
  texts = random_texts()
  for name in ("block", "box of LaTeX", "verdicts", "chain", "times", "mark"):
    read, _ = PARSERS[name]
    nothing = read("")
    assert sum(read(text) != nothing for text in texts) >= 10, name
