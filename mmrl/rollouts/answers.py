"""Sampled answers and their grading by rewards on the host."""

from collections.abc import Mapping, Sequence
import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl import build, data
from mmrl.errors import UserError
from mmrl.prompts.processor import Processor
from mmrl.types import Prompt, Rollout

# Arguments of a reward on the host; those in TEXT_DATA exist only there.
TEXT_DATA = ("text", "answer", "example")
HOST_DATA = (*TEXT_DATA, "length", "ended")


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
    return bool(set(TEXT_DATA) & set(self.bound.needs))


@dataclasses.dataclass(frozen=True)
class Answers:
  """Sampled answers, with their rewards once they are graded.

  Attributes:
    examples: the questions.
    prompt: their prompts.
    rollout: the answers.
    tokens, mask: those of this process, NumPy. The mask is False on answers
      that nothing is learned from; the rollout's own mask isn't.
    parts: values of each reward, by its name. If answers were appended after
      grading, they cover the first answers only.
  """

  examples: Sequence[data.Example]
  prompt: Prompt
  rollout: Rollout
  tokens: Int[np.ndarray, "P G R"]
  mask: Bool[np.ndarray, "P G R"]
  parts: Mapping[str, Float[np.ndarray, "P graded"]] = dataclasses.field(
    default_factory=dict
  )


def grade(
  answers: Answers, rewards: Sequence[Reward], processor: Processor
) -> Answers:
  """Grades answers by the rewards that read texts, each called once.

  One call covers all P x G answers that aren't graded yet.

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
  context = {
    "text": [
      texts[p * group : (p + 1) * group] for p in range(len(answers.examples))
    ],
    "answer": [example.answer for example in answers.examples],
    "example": list(answers.examples),
    "length": mask.sum(-1),
    "ended": (tokens == processor.config.eos_token_id).any(-1),
  }
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
  rewards: Sequence[Reward], parts: Mapping[str, Float[np.ndarray, "P G"]]
) -> Float[np.ndarray, "P G"]:
  """Computes the total reward: the weighted sum of all rewards."""
  found = sum(reward.weight * parts[reward.name] for reward in rewards)
  return np.asarray(found, np.float32)
