"""Sampled answers, and how they are graded on the host."""

from collections.abc import Mapping, Sequence
import concurrent.futures
import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl import build, data
from mmrl.prompts.processor import Processor
from mmrl.types import Prompt, Rollout

# (name, weight, function) of a part of the reward.
Reward = tuple[str, float, build.Bound]


@dataclasses.dataclass(frozen=True)
class Answers:
  """Sampled answers; with their rewards once they are graded.

  Attributes:
    examples: the questions.
    prompt: their prompts.
    rollout: the answers.
    tokens, mask: those of this process, NumPy. The mask is empty where nothing
      is learned from; the rollout's own isn't.
    rewards: of each answer; of the first ones where others came later.
    parts: the same, by the name of the reward.
  """

  examples: Sequence[data.Example]
  prompt: Prompt
  rollout: Rollout
  tokens: Int[np.ndarray, "P G R"]
  mask: Bool[np.ndarray, "P G R"]
  rewards: Float[np.ndarray, "P graded"] | None = None
  parts: Mapping[str, Float[np.ndarray, "P graded"]] = dataclasses.field(
    default_factory=dict
  )


def grade(
  answers: Answers,
  rewards: Sequence[Reward],
  processor: Processor,
  pool: concurrent.futures.Executor,
) -> Answers:
  """Rewards of the answers, computed on the host, prompts in parallel.

  Those that are graded already keep theirs.
  """
  known = 0 if answers.rewards is None else answers.rewards.shape[1]
  tokens, mask = answers.tokens[:, known:], answers.mask[:, known:]
  group = mask.shape[1]
  if not group:
    return answers
  texts = processor.decode(tokens, mask)
  ended = (tokens == processor.config.eos_token_id).any(-1)
  lengths = mask.sum(-1)

  def one_prompt(p: int):
    example = answers.examples[p]
    contexts = [
      {
        "text": texts[p * group + g],
        "answer": example.answer,
        "example": example,
        "length": int(lengths[p, g]),
        "ended": bool(ended[p, g]),
      }
      for g in range(group)
    ]
    return [[bound(one) for one in contexts] for _, _, bound in rewards]

  found = list(pool.map(one_prompt, range(len(answers.examples))))
  values = np.array(found).astype(np.float32)
  parts = {name: values[:, i] for i, (name, _, _) in enumerate(rewards)}
  if known:
    parts = {
      name: np.concatenate([answers.parts[name], x], axis=1)
      for name, x in parts.items()
    }
  total = sum(weight * parts[name] for name, weight, _ in rewards)
  total = np.asarray(total, np.float32)
  return dataclasses.replace(answers, rewards=total, parts=parts)
