"""Look-Back: a segment of the answer that looks at the picture again.

  <think> R1 </think> <back> C </back> <think> R2 </think> \\boxed{answer}

The reward is of the text alone. That the segment brings attention back is an
observation, which `attention_share` and `refocus_gain` measure (weight 0).

Reference: arXiv 2507.03019.
Reconstructed: the paper's text couldn't be read, and training code isn't
published. Grammar and measures are those of its evaluation code; rule and
weight of the format reward are chosen here.
"""

from collections.abc import Sequence
import re
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards import lenient, mathematics
from mmrl.rewards.answer import label
from mmrl.types import Prompt

Compare = Literal["lenient", "math"]

_FORM = re.compile(
  r"<think>.*</think>\s*<back>.*</back>\s*<think>.*</think>.*\\boxed\{.*\}.*",
  re.DOTALL,
)
_SEGMENT = re.compile("<back>.*?</back>", re.DOTALL)


def is_formed(text: str, *, exactly_one: bool = True) -> bool:
  """Tells whether a whole output has the grammar; white space around is free.

  Other text may follow the box, and stand before it; parts may be empty, and
  further thoughts there. Nothing but white space is between thought and
  segment.

  Args:
    text: what the model wrote.
    exactly_one: whether further segments, or tags of them, are refused.
  """
  once = all(text.count(tag) == 1 for tag in ("<back>", "</back>"))
  if exactly_one and not once:
    return False
  return _FORM.fullmatch(text.strip()) is not None


def count_segments(text: str) -> int:
  """Counts the closed segments of a text."""
  return len(_SEGMENT.findall(text))


def boxed(text: str) -> str | None:
  """Returns what the last `\\boxed{` of a text holds; None if it isn't closed.

  Braces inside are balanced. Unlike `extract` it reads thoughts, too, and an
  earlier box doesn't help.
  """
  _, opened, after = text.rpartition(r"\boxed{")
  if not opened:
    return None
  depth = 1
  for index, character in enumerate(after):
    depth += (character == "{") - (character == "}")
    if not depth:
      return after[:index].strip()
  return None


def compose(
  first: str, check: str, second: str, answer: str, *, segment: bool = True
) -> str:
  """Composes a text of the grammar from its parts, to learn from first.

  Args:
    first: reasoning up to the segment; a whole solution in the variant that
      checks solutions.
    check: what the segment sees in the picture.
    second: reasoning from there on.
    answer: what the box holds.
    segment: False for the control, the same words in one thought.

  Raises:
    UserError: if a part is empty or has a tag of the grammar or a box, so that
      the text would have another form.
  """
  parts = {"first": first, "check": check, "second": second, "answer": answer}
  for name, part in parts.items():
    found = re.search(r"</?(?:think|back)>|\\boxed\{", part)
    if found or not part.strip():
      raise UserError(
        f"{name}: expected a text without tags and boxes, found"
        f" {found[0] if found else part!r:.80}; take it out, or leave the row"
        " out"
      )
  first, check, second, answer = (part.strip() for part in parts.values())
  box = rf"\boxed{{{answer}}}"
  if not segment:
    return f"<think>{first} {check} {second}</think> {box}"
  thoughts = f"<think>{first}</think> <back>{check}</back>"
  return f"{thoughts} <think>{second}</think> {box}"


def split(trace: str, at: int | None = None) -> tuple[str, str]:
  """Splits a trace where a segment is to stand in its middle.

  Args:
    trace: of at least two words.
    at: number of words before the segment; half of them if None.

  Raises:
    UserError: if a side were empty.
  """
  words = trace.split()
  at = len(words) // 2 if at is None else at
  if not 0 < at < len(words):
    raise UserError(
      f"expected a place within {len(words)} words for a segment, found {at};"
      " leave the row out"
    )
  return " ".join(words[:at]), " ".join(words[at:])


@marked(
  hint=(
    "it wants <think>..</think> <back>..</back> <think>..</think> \\boxed{..}:"
    " teach the policy to write it first (experiments/look_back.py)"
  )
)
def back_format(
  text: Sequence[Sequence[str]], *, exactly_one: bool = True
) -> Float[np.ndarray, "P G"]:
  """Rewards answers of the grammar with 1, others with 0; see `is_formed`."""
  found = [
    [is_formed(one, exactly_one=exactly_one) for one in group] for group in text
  ]
  return np.array(found, np.float32)


def back_segment(text: Sequence[Sequence[str]]) -> Float[np.ndarray, "P G"]:
  """Tells which answers have a closed segment: the trigger rate, weight 0."""
  found = [[count_segments(one) > 0 for one in group] for group in text]
  return np.array(found, np.float32)


def _check_compare(*, compare: Compare = "lenient") -> None:
  if compare == "math":
    mathematics.math_answer.check()  # type: ignore[attr-defined]


@marked(check=_check_compare)
def boxed_accuracy(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  *,
  compare: Compare = "lenient",
) -> Float[np.ndarray, "P G"]:
  """Rewards answers whose last box holds the right one with 1, others with 0.

  Args:
    text: P lists of G answers.
    answer: the right one of each question.
    compare: as `lenient_answer`, or as `math_answer`, whose extra it needs.
  """
  same = lenient.same if compare == "lenient" else mathematics.same

  def right(one: str, wanted: str) -> bool:
    given = boxed(one)
    return (
      given is not None and "" not in (given, wanted) and same(given, wanted)
    )

  found = [
    [right(one, label(wanted)) for one in group]
    for group, wanted in zip(text, answer, strict=True)
  ]
  return np.array(found, np.float32)


def attention_share(
  attention_shares_old: Float[Array, "P G R 3"],
  prompt: Prompt,
  mask: Bool[Array, "P G R"],
  *,
  of: Literal["image", "question", "answer"] = "image",
) -> Float[Array, "P G"]:
  """Computes the mean share of attention on a part, mean over an answer.

  Args:
    attention_shares_old: from `probes.attention_shares`.
    prompt: tells which questions have a picture.
    mask: True on answer tokens.
    of: which part.

  Returns:
    In [0, 1]; NaN, for weight 0, of an answer without tokens, or a question
    without a picture.
  """
  part = ("image", "question", "answer").index(of)
  values = attention_shares_old[..., part].astype(jnp.float32)
  mean = jnp.where(mask, values, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
  pictured = (prompt.visual_index >= 0).any(-1, keepdims=True)
  return jnp.where(mask.any(-1) & pictured, mean, jnp.nan)


def refocus_gain(
  attention_shares_old: Float[Array, "P G R 3"],
  tagged: Bool[Array, "P G R"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G"]:
  """Computes by how much attention to the picture is higher in the segment.

  Mean share on the picture of tokens inside, less that of tokens outside. It
  doesn't tell the look from the text that is added: compare with the control.

  Args:
    attention_shares_old: from `probes.attention_shares`.
    tagged: True inside; see `rollouts.tagged`.
    mask: True on answer tokens.

  Returns:
    In [-1, 1]; NaN, for weight 0, where there is no token inside or none
    outside.
  """
  values = attention_shares_old[..., 0].astype(jnp.float32)

  def mean(chosen):
    total = jnp.where(chosen, values, 0.0).sum(-1)
    return total / jnp.maximum(chosen.sum(-1), 1)

  inside, outside = mask & tagged, mask & ~tagged
  valid = inside.any(-1) & outside.any(-1)
  return jnp.where(valid, mean(inside) - mean(outside), jnp.nan)
