"""Answers on the host, and their grading by rewards."""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl import build, data, names
from mmrl.errors import UserError
from mmrl.machines.sharding import Layout
from mmrl.prompts.processor import Processor
from mmrl.types import Batch

_TEXTS = {n for n, x in names.NAMES.items() if x.slots == (names.TEXTS,)}


@dataclasses.dataclass(frozen=True)
class Reward:
  """One part of the reward.

  Attributes:
    name: its key in `config.rewards`.
    weight: its factor in the total.
    bound: the function with its options.
  """

  name: str
  weight: float
  bound: build.Bound

  @property
  def on_host(self) -> bool:
    """Tells whether the reward reads texts and therefore runs on the host."""
    return reads_texts(self.bound.function)


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
) -> Answers:
  """Grades answers by the rewards that read texts, each called once.

  One call covers all P x G answers that aren't graded yet.

  Args:
    answers: graded in part, or not.
    rewards: of the run; those that read arrays are left out.
    processor: decodes the answers.
    layout: of the batch.

  Raises:
    UserError: if a reward returns another shape, or a non-finite value; see
      `checked`.
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
  )
  parts = {}
  for reward in graded:
    values = checked(reward, reward.bound(context), answers.examples, group)
    before = answers.parts.get(reward.name, values[:, :0])
    parts[reward.name] = np.concatenate([before, values], axis=1)
  return dataclasses.replace(answers, parts=parts)


def checked(
  reward: Reward, values, examples: Sequence[data.Example], group: int
) -> Float[np.ndarray, "P G"]:
  """Checks a reward's values and returns them as float32.

  Raises:
    UserError: if they aren't one finite number per answer; names the reward,
      and the question of an answer without one.
  """
  where, shape = f"config.rewards.{reward.name}", (len(examples), group)
  values = np.asarray(values, np.float32)
  if values.shape != shape:
    raise UserError(
      f"{where}: expected {reward.bound.name} to return a number for each of"
      f" {shape[0]} x {shape[1]} answers, found shape {values.shape}"
    )
  wrong = np.argwhere(~np.isfinite(values))
  if len(wrong):
    p, g = wrong[0]
    raise UserError(
      f"{where}: expected numbers from {reward.bound.name}, found"
      f" {values[p, g]} for answer {g} to question {examples[p].name}"
    )
  return values


def total(
  rewards: Sequence[Reward], answers: Answers
) -> Float[np.ndarray, "P G"]:
  """Computes the total reward: the weighted sum of all; 0 without any."""
  parts = [reward.weight * answers.parts[reward.name] for reward in rewards]
  return sum(parts, np.zeros(answers.mask.shape[:2], np.float32))
