"""Inspection of questions before a run: what can't be used, and sizes."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import os
import sys
from typing import Any

import numpy as np
import tqdm

from mmrl import console
from mmrl.data import pipeline
from mmrl.errors import UserError
from mmrl.prompts import packing
from mmrl.prompts.processor import Processor

BROKEN = "broken"


@dataclasses.dataclass(frozen=True)
class Limits:
  """Largest sizes that a run has room for.

  Attributes:
    tokens: of a prompt; 0 for no limit.
    patches: of a prompt; 0 for no limit.
    answer: tokens of an answer, its end included.
    learns: whether the run learns the texts that the data give.
  """

  tokens: int
  patches: int
  answer: int
  learns: bool = False


@dataclasses.dataclass(frozen=True)
class Finding:
  """Sizes of one question, and why it can't be used.

  Attributes:
    index: in its source.
    name: of the question.
    tokens: of its prompt; 0 if it is broken, as all sizes are.
    patches: that its pictures and videos take up.
    answer: tokens of the shortest right answer, its end included; 0 without.
    text: most tokens of a text to learn; 0 if there is none, or none is read.
    fault: "" if it can be used, `BROKEN`, or which size is too large.
    message: of the error that it would be in a run.
  """

  index: int
  name: str
  tokens: int = 0
  patches: int = 0
  answer: int = 0
  text: int = 0
  fault: str = ""
  message: str = ""


def inspect(
  source: Any,
  processor: Processor,
  limits: Limits,
  *,
  indices: Sequence[int] | None = None,
  outlines: bool = False,
  workers: int = 0,
  title: str = "",
) -> list[Finding]:
  """Opens and measures every question, as a run would; shows a bar.

  It takes one thread per core, in each of `workers` processes.

  Args:
    source: random-access examples.
    processor: the model's.
    limits: sizes that are too large beyond.
    indices: which questions; all if None.
    outlines: whether pictures are only measured, by the beginning of their
      files; what is broken further on isn't found.
    workers: processes that read, beside this one; with 0 this one does.
    title: of the bar.

  Returns:
    What was found of each question, in order.
  """
  chosen = range(len(source)) if indices is None else indices
  if not len(chosen):
    return []
  look = functools.partial(
    _look,
    source=source,
    processor=processor,
    limits=limits,
    outlines=outlines,
  )
  found = pipeline.each(
    chosen, look, threads=os.cpu_count() or 1, workers=workers
  )
  bar = tqdm.tqdm(
    found, desc=title, total=len(chosen), unit="question", disable=None
  )
  try:
    with console.phase(f"inspecting {title or 'questions'}"):
      return list(bar)
  finally:
    found.close()


def _look(
  index: int,
  source: Any,
  processor: Processor,
  limits: Limits,
  outlines: bool,
) -> Finding:
  name = f"question {index}"
  try:
    example = source[int(index)]
    name = example.name
    asked = [e for e in (example, example.partner) if e is not None]
    encoded = [
      processor.encode(e.messages, e.name, measure=outlines) for e in asked
    ]
    most = sys.maxsize
    answers = [
      processor.encode_answer(right, most, name) for right in example.right
    ]
    texts = [
      processor.encode_text(text, most, name)
      for text in (example.answers if limits.learns else ())
    ]
  except UserError as error:
    return Finding(int(index), name, fault=BROKEN, message=str(error))
  found = Finding(
    int(index),
    name,
    tokens=max(len(e.tokens) for e in encoded),
    patches=max(packing.room(e, processor.config.vision) for e in encoded),
    answer=min(map(len, answers), default=0),
    text=max(map(len, texts), default=0),
  )
  return judge(found, limits)


def judge(found: Finding, limits: Limits) -> Finding:
  """Returns a finding with the first of its sizes that is too large."""
  if found.fault == BROKEN:
    return found
  longer = "raise the answer length (config.rollout.length) or shorten it"
  for fault, size, most, what, remedy in (
    ("long prompt", found.tokens, limits.tokens, *_of_bucket("tokens")),
    ("many patches", found.patches, limits.patches, *_of_bucket("patches")),
    ("long answer", found.answer, limits.answer, "tokens in 'answer'", longer),
    ("long text", found.text, limits.answer, "tokens in 'answers'", longer),
  ):
    if most and size > most:
      message = (
        f"{found.name}: expected at most {most} {what}, found {size}; {remedy}"
      )
      return dataclasses.replace(found, fault=fault, message=message)
  return dataclasses.replace(found, fault="", message="")


def _of_bucket(what: str) -> tuple[str, str]:
  field = "config.data.lengths" if what == "tokens" else "config.data.patches"
  return what, (
    f"add a larger size to {field}, shrink the pictures (max_pixels) or shorten"
    " the text"
  )


def packed(found: Sequence[Finding], pack: int) -> list[Finding]:
  """Returns findings with the patches that each needs beside its neighbours.

  Room for patches is shared by questions that are packed together, in order.
  The question of a pack that has the most gets their mean, the others none.

  Args:
    found: of all questions, in the order in which they are asked.
    pack: how many are packed together; the last question fills the last pack.
  """
  result = list(found)
  for start in range(0, len(found), pack):
    group = found[start : start + pack]
    total = sum(one.patches for one in group)
    total += (pack - len(group)) * group[-1].patches
    mean = -(-total // pack)
    largest = max(range(len(group)), key=lambda i: group[i].patches)
    for i, one in enumerate(group):
      patches = mean if i == largest else 0
      result[start + i] = dataclasses.replace(one, patches=patches)
  return result


def faults(found: Iterable[Finding]) -> dict[str, list[Finding]]:
  """Groups those that can't be used by their fault."""
  groups: dict[str, list[Finding]] = {}
  for one in found:
    if one.fault:
      groups.setdefault(one.fault, []).append(one)
  return groups


def counts(found: Iterable[Finding]) -> str:
  """Counts faults in words, as in "2 broken, 1 long prompt"."""
  groups = faults(found).items()
  return ", ".join(f"{len(group)} {fault}" for fault, group in groups)


def describe(
  found: Sequence[Finding],
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
) -> list[str]:
  """Describes findings in a few lines: faults, sizes, and sizes in use.

  Args:
    found: of a source's questions.
    lengths, patches: sizes that prompts are padded to.
  """
  groups = faults(found)
  usable = [one for one in found if not one.fault]
  wrong = len(found) - len(usable)
  lines = [f"{len(found)} questions, {wrong} of which can't be used"]
  lines += [
    f"  {fault}: {len(group)}, the first: {group[0].message}"
    for fault, group in groups.items()
  ]
  measured = [one for one in found if one.fault != BROKEN]
  for field in ("tokens", "patches", "answer", "text"):
    sizes = np.array([getattr(one, field) for one in measured])
    if not sizes.any():
      continue
    middle, high = np.percentile(sizes, (50, 95), method="higher")
    lines.append(
      f"  {field}: median {middle}, 95 % at most {high}, most {sizes.max()}"
    )
  if not (lengths and patches):
    return lines
  pairs: dict[tuple[int, int], int] = {}
  for one in usable:
    pair = _fitting(one.tokens, lengths), _fitting(one.patches, patches)
    pairs[pair] = pairs.get(pair, 0) + 1
  lines += [
    f"  padded to {length} tokens and {count} patches: {pairs[length, count]}"
    for length, count in sorted(pairs)
  ]
  return lines


def _fitting(size: int, buckets: Sequence[int]) -> int:
  return min((b for b in buckets if b >= size), default=max(buckets))
