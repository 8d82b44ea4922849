"""What a judge is asked about an answer's facts, and how its reply is read.

Reference: Perception-R1, arXiv 2506.07218, and its published code.
Differs from it: the words and the worked examples of the prompt are our own,
and tags of verdicts in an answer are broken up, as the reply may echo them.
"""

from collections.abc import Sequence
import math
import re
from typing import Literal

Denominator = Literal["returned", "all"]
# One on each fact, in [0, 1].
Verdicts = Sequence[float | int]

_EPSILON = 1e-6
_TAG = re.compile(r"<(?=/?info\d)")
_SYSTEM = """\
You get numbered facts that can be seen in a picture, and a response to a \
question about that picture. Say of each fact whether the response states it: \
1 if it clearly does, in whatever words, else 0. Whether a fact is true, or \
matters to the question, is not for you to judge. Write one verdict for each \
fact and nothing else, as in <info1>1</info1> <info2>0</info2>.

Facts:
<info1>AB is 6.</info1>
<info2>The angle at B is a right angle.</info2>
Response: The triangle has a right angle at B and BC = 8. So AC is 10.
Verdicts:
<info1>0</info1>
<info2>1</info2>

Facts:
<info1>There is a red star on the left.</info1>
<info2>There are two rings.</info2>
<info3>One of the rings is blue.</info3>
Response: I count the rings, of which one is blue. With the other one that is 2.
Verdicts:
<info1>0</info1>
<info2>1</info2>
<info3>1</info3>

Facts:
<info1>Lines p and q are parallel.</info1>
<info2>The marked angle is 3x + 5 degrees.</info2>
Response: As p || q, the angles are equal, so 2x + 5 = 65 and x is 30.
Verdicts:
<info1>1</info1>
<info2>0</info2>"""


def conversation(facts: Sequence[str], text: str) -> list[dict[str, str]]:
  """Asks a judge which facts a text states: a system's and a user's turn."""
  listed = "\n".join(f"<info{i}>{f}</info{i}>" for i, f in enumerate(facts, 1))
  shown = _TAG.sub("< ", text)
  asked = f"Facts:\n{listed}\nResponse: {shown}\nVerdicts:"
  return [
    {"role": "system", "content": _SYSTEM},
    {"role": "user", "content": asked},
  ]


def parse(reply: str) -> list[float]:
  """Returns the verdicts of a reply, numbered from 1 on without a gap.

  Of several verdicts with one number the last one counts: a reply may begin
  with the facts, which stand in the same tags. What is no number is 0, and
  numbers are cut to [0, 1].
  """
  found: list[float] = []
  while (verdict := _verdict(reply, len(found) + 1)) is not None:
    found.append(verdict)
  return found


def _verdict(reply: str, number: int) -> float | None:
  """Reads the last verdict of a number; None where there is none."""
  opening, closing = f"<info{number}>", f"</info{number}>"
  # At least one character stands between the two.
  last = reply.rfind(closing) - 1
  start = reply.rfind(opening, 0, max(last, 0))
  if start < 0:
    return None
  start += len(opening)
  try:
    value = float(reply[start : reply.index(closing, start + 1)])
  except ValueError:
    return 0.0
  return 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)


def hit_rate(
  verdicts: Verdicts | None,
  count: int,
  denominator: Denominator = "returned",
) -> float:
  """Computes the share of facts that are stated, sum / (number + 1e-6).

  Args:
    verdicts: from `parse`; None if the judge didn't answer, which is 0.
    count: number of facts.
    denominator: "returned" divides by the number of verdicts, as published, so
      that a judge that stops early is not counted against an answer; "all" by
      that of the facts, of whose verdicts further ones don't count.
  """
  found = list(verdicts or ())
  if denominator == "returned":
    count = len(found)
  return sum(found[:count]) / (count + _EPSILON)
