"""Verifiable rewards of an answer's text: the block, and the form around it.

Every reward here that compares answers, and every evaluation, reads the same
block: the last closed one after the thought; see `extract`.

Reference: Reinforced Attention Learning, arXiv 2602.04884, section 3, whose
reward is 0.9 accuracy + 0.1 format.
Reconstructed: the paper doesn't specify how strings are compared. Outer white
space is ignored, case counts, the last closed answer block after the thought is
the answer (once it was the first of the text; outputs with one block after one
thought are scored alike), and each tag may occur only once.
"""

from collections.abc import Callable, Sequence
import functools
import re
from typing import Literal, get_args

from jaxtyping import Float
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked

Form = Literal["think", "answer", "boxed", "exact", "begin"]
Block = Literal["answer", "boxed"]
ThinkTags = Literal["text", "open"]
Tag = Literal["think", "thinking"]


def extract(text: str, block: Block = "answer") -> str | None:
  """Returns a text's answer block, stripped; None without one.

  It is the last closed block after the last `</think>`, or of the whole text
  where that tag isn't in it. So blocks that a thought mentions don't count,
  and of several attempts the last one does.

  Args:
    text: what the model wrote.
    block: "answer" for `<answer>...</answer>`, "boxed" for `\\boxed{...}`.
  """
  after = text.rpartition("</think>")[2]
  if block == "boxed":
    found = map(_in_braces, reversed(after.split(r"\boxed{")[1:]))
    return next((one for one in found if one is not None), None)
  for part in reversed(after.split("</answer>")[:-1]):
    if "<answer>" in part:
      return part.rpartition("<answer>")[2].strip()
  return None


def _in_braces(text: str) -> str | None:
  """Returns what comes before the brace that closes; None without it."""
  depth = 1
  for index, character in enumerate(text):
    depth += (character == "{") - (character == "}")
    if not depth:
      return text[:index].strip()
  return None


def label(answer: str) -> str:
  """Returns a right answer that is bare or in a block of its own, stripped."""
  found = extract(answer)
  return answer.strip() if found is None else found


def score(
  text: Sequence[Sequence[str]],
  answer: Sequence[str],
  compare: Callable[[str, str], float],
  block: Block = "answer",
) -> Float[np.ndarray, "P G"]:
  """Scores the answer block of every text; 0 where it is missing or empty.

  Args:
    text: P lists of G answers.
    answer: the right one of each question, see `label`; an empty one is never
      matched.
    compare: what is in a block, and the right answer -> a score.
    block: see `extract`.
  """
  rights = [label(right) for right in answer]
  found = [
    [
      compare(given, right) if right and (given := extract(one, block)) else 0.0
      for one in group
    ]
    for group, right in zip(text, rights, strict=True)
  ]
  return np.array(found, np.float32)


def is_right(text: str, answer: str) -> bool:
  """Tells whether a text's answer block is exactly the right answer.

  Args:
    text: what the model wrote; an empty or missing block is wrong.
    answer: the right answer, bare or in an answer block of its own.
  """
  given = extract(text)
  return bool(given) and given == label(answer)


def exact_answer(
  text: Sequence[Sequence[str]], answer: Sequence[str]
) -> Float[np.ndarray, "P G"]:
  """Rewards answers that are exactly right with 1, others with 0.

  Args:
    text: P lists of G answers.
    answer: the right one of each question; see `is_right`.
  """
  return score(text, answer, lambda given, right: float(given == right))


@functools.cache
def _form(
  form: str, think_tags: ThinkTags, tag: Tag
) -> tuple[re.Pattern[str], dict[str, int]]:
  """Returns a form's pattern, and how often each tag occurs in it."""
  written = int(think_tags == "text")
  begin = f"<{tag}>" * written
  if form == "boxed":
    pattern = rf"{begin}.*</{tag}>.*\\boxed\{{.*\}}.*"
    return re.compile(pattern, re.DOTALL), {}
  counts = {"<answer>": 1, "</answer>": 1}
  block = "<answer>.*</answer>"
  if form == "answer":
    return re.compile(block, re.DOTALL), counts
  if form in ("exact", "begin"):
    after = ".*" if form == "begin" else ""
    pattern = rf"{begin}.*</{tag}>\s*{block}{after}"
    return re.compile(pattern, re.DOTALL), {}
  counts |= {f"<{tag}>": written, f"</{tag}>": 1}
  pattern = rf"{begin}.*</{tag}>\s*{block}"
  return re.compile(pattern, re.DOTALL), counts


def is_formed(
  text: str,
  form: str = "think",
  think_tags: ThinkTags = "text",
  tag: Tag = "think",
) -> bool:
  """Tells whether a whole output has exactly the given form.

  Args:
    text: what the model wrote.
    form: "think" for `<think>...</think><answer>...</answer>` with white
      space allowed between, "answer" for just `<answer>...</answer>`
      (RAL-zero), "boxed" for `<think>...</think>` and then any text with
      `\\boxed{...}` in it, as EasyR1 has it, which counts no tags. "exact" is
      "think" without white space around, counting no tags (Video-R1), and
      "begin" the same with any text behind (SEED-Bench-R1).
    think_tags: "text" if the model writes both tags of the thought, "open" if
      the chat template has opened it, so that the text begins inside of it.
    tag: name of the thought's tag.

  Raises:
    UserError: if there is no such form.
  """
  if form not in (known := get_args(Form)):
    raise UserError(f"form must be one of {[*known]}, got {form!r:.80}")
  pattern, counts = _form(form, think_tags, tag)
  whole = all(text.count(tag) == count for tag, count in counts.items())
  if form not in ("exact", "begin"):
    text = text.strip()
  return whole and pattern.fullmatch(text) is not None


def _check_form(
  *,
  form: Form = "think",
  think_tags: ThinkTags | None = None,
  tag: Tag | None = None,
) -> None:
  if form == "answer" and (think_tags or tag):
    raise UserError(
      "expected think_tags and tag with form 'think' only, found them with form"
      " 'answer', which has no thought; leave them out"
    )


def _form_hint(
  *, form: Form = "think", think_tags: ThinkTags = "text", tag: Tag = "think"
) -> str:
  if form == "answer":
    return (
      "it wants <answer>...</answer> and nothing else: let the prompt ask for"
      ' that, or use form="think"'
    )
  begin = f"<{tag}>" if think_tags == "text" else ""
  wanted = f"{begin}...</{tag}><answer>...</answer>, each tag once"
  if form == "boxed":
    wanted = f"{begin}...</{tag}>...\\boxed{{...}}"
  if form in ("exact", "begin"):
    wanted = f"{begin}...</{tag}><answer>...</answer> from the first character"
  other = "thinking" if tag == "think" else "think"
  opened = (
    f'if the chat template opens <{tag}> itself, set think_tags="open"'
    if think_tags == "text"
    else f'if the model writes <{tag}> itself, set think_tags="text"'
  )
  return (
    f"it wants {wanted}: let the prompt ask for these tags, whether they are"
    " tokens of their own or not;"
    f' {opened}; if the model writes <{other}>, set tag="{other}"'
  )


@marked(check=_check_form, hint=_form_hint)
def answer_format(
  text: Sequence[Sequence[str]],
  *,
  form: Form = "think",
  think_tags: ThinkTags = "text",
  tag: Tag = "think",
) -> Float[np.ndarray, "P G"]:
  """Rewards answers of the given form with 1, others with 0.

  Args:
    text: P lists of G answers.
    form, think_tags, tag: see `is_formed`.

  Raises:
    UserError: if there is no such form.
  """
  found = [
    [is_formed(one, form, think_tags, tag) for one in group] for group in text
  ]
  return np.array(found, np.float32)
