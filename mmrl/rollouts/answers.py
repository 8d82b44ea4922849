"""Answers on the host, and their grading by rewards."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import inspect
import math
import numbers
import time
from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl import build, data, errors, names, python_files
from mmrl.controls import placebo as placebo_lib
from mmrl.errors import UserError
from mmrl.machines.sharding import Layout
from mmrl.prompts.processor import Processor
from mmrl.rewards import needs
from mmrl.types import Batch

# Seconds spent on finding the answer that a reward raises for.
_SEARCH = 10.0
# The names of data that hold the right answers.
READS_RIGHT = frozenset(("answer", "example"))
_TEXTS = {n for n, x in names.NAMES.items() if x.slots == (names.TEXTS,)}


@dataclasses.dataclass(frozen=True)
class Reward:
  """One part of the reward.

  Attributes:
    name: its key in `config.rewards`.
    weight: its factor in the total.
    bound: the function with its options.
    times: names of other rewards that its value is multiplied by in the total.
    start: number of the first step at which it counts.
    placebo: kind of placebo that counts in its place; see `mmrl.controls`.
  """

  name: str
  weight: float
  bound: build.Bound
  times: tuple[str, ...] = ()
  start: int = 0
  placebo: str = ""

  @property
  def on_host(self) -> bool:
    """Tells whether the reward reads texts and therefore runs on the host."""
    return reads_texts(self.bound.function)


def take_settings(
  spec: dict[str, Any], where: str, others: Collection[str]
) -> dict[str, Any]:
  """Takes out of a reward's spec how it counts: see `Reward`.

  Args:
    spec: of the function; weight, times, start and placebo are taken out.
    where: the config field, for errors.
    others: names of the other rewards.

  Raises:
    UserError: if one of them is missing or of another kind.
  """
  if "weight" not in spec:
    raise UserError(f"{where}: expected a weight beside the name")
  weight = spec.pop("weight")
  if not errors.is_number(weight):
    raise UserError(f"{where}.weight: expected a number, found {weight!r}")
  times, start = spec.pop("times", ()), spec.pop("start", 0)
  if isinstance(times, str) or not {*times} <= {*others}:
    raise UserError(
      f"{where}.times: expected a list of others of config.rewards,"
      f" {', '.join(sorted(others)) or 'of which there is none'}, found"
      f" {times!r}"
    )
  if type(start) is not int or start < 0:
    raise UserError(
      f"{where}.start: expected the number of a step, found {start!r}"
    )
  kind = spec.pop("placebo", "")
  placebo_lib.check(kind, where)
  settings = {"times": tuple(times), "start": start, "placebo": kind}
  return {"weight": float(weight), **settings}


def reads_texts(function) -> bool:
  """Tells whether a reward's function has an argument that is on the host."""
  return bool(_TEXTS & set(inspect.signature(function).parameters))


@dataclasses.dataclass(frozen=True)
class Answers:
  """Answers to a batch of questions, with their rewards once they are graded.

  Attributes:
    examples: the questions.
    batch: the answers on the devices.
    tokens, mask: the batch's, of this process's prompts, NumPy.
    parts: values of each reward, by its name. If answers were appended after
      grading, they cover the first answers only.
  """

  examples: Sequence[data.Example]
  batch: Batch
  tokens: Int[np.ndarray, "P G R"]
  mask: Bool[np.ndarray, "P G R"]
  parts: Mapping[str, Float[np.ndarray, "P graded"]] = dataclasses.field(
    default_factory=dict
  )

  @classmethod
  def of(
    cls, examples: Sequence[data.Example], batch: Batch, layout: Layout
  ) -> "Answers":
    """Fetches tokens and mask of a batch that isn't graded yet."""
    tokens, mask = map(layout.local, (batch.tokens, batch.mask))
    return cls(examples, batch, tokens, mask)


def text_context(
  examples: Sequence[data.Example],
  texts: Sequence[Sequence[str]],
  length: Int[np.ndarray, "P G"],
  ended: Bool[np.ndarray, "P G"],
) -> dict[str, Any]:
  """Returns the data that rewards of texts name, by name.

  Args:
    examples: the questions.
    texts: P lists of G answers.
    length: number of an answer's tokens.
    ended: whether it has its end of sequence.
  """
  return {
    "text": texts,
    "answer": [example.answer for example in examples],
    "example": list(examples),
    "length": length,
    "ended": ended,
  }


def grade(
  answers: Answers,
  rewards: Sequence[Reward],
  processor: Processor,
  layout: Layout,
  given: Mapping[str, Any] | None = None,
) -> Answers:
  """Grades answers by the rewards that read texts, each called once.

  One call covers all P x G answers that aren't graded yet.

  Args:
    answers: graded in part, or not.
    rewards: of the run; those that read arrays are left out.
    processor: decodes the answers.
    layout: of the batch.
    given: what else rewards may name, such as models to ask.

  Raises:
    UserError: if a reward raises, or returns another shape or anything that
      isn't a finite number; see `score`.
  """
  graded = [reward for reward in rewards if reward.on_host]
  known = next((x.shape[1] for x in answers.parts.values()), 0)
  tokens, mask = answers.tokens[:, known:], answers.mask[:, known:]
  group = mask.shape[1]
  if not group or not graded:
    return answers
  texts = processor.decode(tokens, mask)
  context = text_context(
    answers.examples,
    [texts[p * group : (p + 1) * group] for p in range(len(answers.examples))],
    mask.sum(-1),
    layout.local(answers.batch.fields["ended"])[:, known:],
  ) | dict(given or {})
  parts = {}
  for reward in graded:
    nan = is_measure(reward, rewards)
    values = score(reward.bound, context, nan=nan)
    before = answers.parts.get(reward.name, values[:, :0])
    parts[reward.name] = np.concatenate([before, values], axis=1)
  return dataclasses.replace(answers, parts=parts)


def score(
  bound: build.Bound, context: Mapping[str, Any], *, nan: bool = False
) -> Float[np.ndarray, "P G"]:
  """Calls a reward of texts, and checks what it returns.

  Where a question has several right answers, it is called for each of them,
  and the largest value counts.

  Args:
    bound: the reward.
    context: from `text_context`.
    nan: whether a value may be NaN, of an answer that it doesn't apply to.

  Raises:
    UserError: if it raises, or returns anything but one number per answer;
      names the reward, and the question, number and text of the answer. If it
      reads right answers and a question has none.
  """
  if not READS_RIGHT & set(bound.needs):
    return _score(bound, context, nan)
  examples = context["example"]
  if "answer" in bound.needs:
    needs.require(bound, ((e.name, e.answer) for e in examples))
  values = _score(bound, context, nan)
  for rank in range(max(len(example.also) for example in examples)):
    rows = [p for p, e in enumerate(examples) if len(e.also) > rank]
    others = dict(context) | text_context(
      [
        dataclasses.replace(examples[p], answer=examples[p].also[rank])
        for p in rows
      ],
      [context["text"][p] for p in rows],
      context["length"][rows],
      context["ended"][rows],
    )
    values[rows] = np.fmax(values[rows], _score(bound, others, nan))
  return values


def _score(
  bound: build.Bound, context: Mapping[str, Any], nan: bool
) -> Float[np.ndarray, "P G"]:
  """Calls a reward once, and checks what it returns; see `score`."""
  try:
    values = bound.call(context)
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f"{bound.where}: expected {bound.name} to return numbers, found"
      f" {_described(bound, error)}{_place(bound, context, error)}; repair it"
    ) from error
  examples, texts = context["example"], context["text"]
  return checked(bound, values, examples, len(texts[0]), texts=texts, nan=nan)


def _described(bound: build.Bound, error: Exception) -> str:
  message = " ".join(str(error).split())
  file = build.file_of(bound.name)
  at = f" at {python_files.place(error, file)}" if file else ""
  return f"{type(error).__name__}: {message:.200}{at}"


def _place(
  bound: build.Bound, context: Mapping[str, Any], error: Exception
) -> str:
  """Finds the answer that a reward raises for, by calling it for each alone."""
  texts, end = context["text"], time.monotonic() + _SEARCH
  for p, group in enumerate(texts):
    for g in range(len(group)):
      if time.monotonic() > end:
        return ""
      one = slice(p, p + 1), slice(g, g + 1)
      alone = dict(context) | text_context(
        context["example"][p : p + 1],
        [[group[g]]],
        context["length"][one],
        context["ended"][one],
      )
      try:
        bound(alone)
      except Exception as again:
        if type(again) is type(error):
          return " for " + _answer(context["example"], texts, p, g)
  return ""


def _answer(
  examples: Sequence[data.Example],
  texts: Sequence[Sequence[str]] | None,
  p: int,
  g: int,
) -> str:
  """Describes an answer, for errors."""
  text = "" if texts is None else f", {texts[p][g][:80]!r}"
  return f"answer {g} to question {examples[p].name}{text}"


def checked(
  bound: build.Bound,
  values: Any,
  examples: Sequence[data.Example],
  group: int,
  *,
  texts: Sequence[Sequence[str]] | None = None,
  nan: bool = False,
) -> Float[np.ndarray, "P G"]:
  """Checks a reward's values and returns them as float32.

  Args:
    bound: the reward.
    values: what it returned; True and False are 1 and 0.
    examples: P questions.
    group: G.
    texts: the answers, where there are texts.
    nan: see `score`.

  Raises:
    UserError: if they aren't one finite number per answer; names the reward,
      and an answer without one.
  """
  expected = f"{bound.where}: expected {bound.name} to return a number"
  shape = (len(examples), group)
  found = _numbers(values)
  if found is None:
    found = np.asarray(values, object)
  if found.shape != shape:
    what = repr(values) if values is None else f"shape {found.shape}"
    raise UserError(
      f"{expected} for each of {shape[0]} x {shape[1]} answers, found {what};"
      " return a list of numbers for every question"
    )
  for p, g in np.ndindex(shape) if found.dtype == object else ():
    if not isinstance(found[p, g], numbers.Real | np.bool_):
      raise UserError(
        f"{expected}, found {found[p, g]!r:.80} for"
        f" {_answer(examples, texts, p, g)}; return 0.0 where it doesn't apply"
      )
  with np.errstate(over="ignore"):
    found = found.astype(np.float32)
  wrong = ~(np.isfinite(found) | (np.isnan(found) & nan))
  for p, g in np.argwhere(wrong).tolist():
    raise UserError(
      f"{expected}, found {found[p, g]} for {_answer(examples, texts, p, g)};"
      " return 0.0 where it doesn't apply"
    )
  return found


def _numbers(values: Any) -> np.ndarray | None:
  """Returns values as an array of numbers; None if they aren't such."""
  try:
    found = np.asarray(values)
  except ValueError:  # lists of several lengths
    return None
  kinds = (np.floating, np.integer, np.bool_)
  known = any(jnp.issubdtype(found.dtype, kind) for kind in kinds)
  return found if known else None


def is_measure(reward: Reward, rewards: Sequence[Reward]) -> bool:
  """Tells whether a reward is only logged: NaN is where it doesn't apply."""
  return not reward.weight and all(reward.name not in x.times for x in rewards)


def addends(
  rewards: Sequence[Reward], answers: Answers, step: int
) -> dict[str, Float[np.ndarray, "P G"]]:
  """Computes what each reward adds to the total of a step, by its name.

  It is its value times its factors, or the placebo of that, times its weight.
  One of weight 0, or before its first step, adds nothing and isn't there.
  """
  found = {}
  for one in rewards:
    if one.weight and step >= one.start:
      factors = [answers.parts[name] for name in (one.name, *one.times)]
      values = np.asarray(math.prod(factors))
      if one.placebo:
        own = map(jnp.asarray, (values, answers.tokens, answers.mask))
        values = np.asarray(placebo_lib.permute(one.placebo, *own))
      found[one.name] = one.weight * values
  return found


def total(
  rewards: Sequence[Reward], answers: Answers, step: int
) -> Float[np.ndarray, "P G"]:
  """Computes the total reward of a step; see `addends` and `summed`."""
  return summed(addends(rewards, answers, step), answers)


def summed(
  added: Mapping[str, Float[np.ndarray, "P G"]], answers: Answers
) -> Float[np.ndarray, "P G"]:
  """Computes the total of what rewards add; 0 where there are none."""
  zero = np.zeros(answers.mask.shape[:2], np.float32)
  return sum(added.values(), start=zero)
