"""Expert trajectories as additional answers of a group (TGRL)."""

import dataclasses

from jaxtyping import Float
import ml_collections
import numpy as np

from mmrl import data
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.expert_filter import keep_experts


def append(answers: Answers, experts: data.Experts, layout: Layout) -> Answers:
  """Appends the experts' rows to the policy's own answers of each group.

  The rollout's mask still covers all sampled tokens, also of groups that were
  dropped since: probes see whole answers.
  """
  rows = experts.rows(answers.examples)
  tokens = np.concatenate([answers.tokens, rows.tokens], axis=1)
  mask = np.concatenate([answers.mask, rows.mask], axis=1)
  expert = np.zeros(mask.shape[:2], bool)
  expert[:, answers.mask.shape[1] :] = True
  sampled = layout.local(answers.rollout.mask)
  logprobs = layout.local(answers.rollout.logprobs)
  unknown = np.zeros(rows.mask.shape, logprobs.dtype)
  rollout = dataclasses.replace(
    answers.rollout,
    tokens=layout.put(tokens),
    mask=layout.put(np.concatenate([sampled, rows.mask], axis=1)),
    logprobs=layout.put(np.concatenate([logprobs, unknown], axis=1)),
    expert=layout.put(expert),
  )
  return dataclasses.replace(answers, rollout=rollout, tokens=tokens, mask=mask)


def choose(
  answers: Answers,
  logprobs: Float[np.ndarray, "P G R"],
  settings: ml_collections.ConfigDict,
) -> tuple[Answers, dict[str, float]]:
  """Clears the masks of expert rows that the batch doesn't learn from.

  Args:
    answers: graded, with expert rows. With several processes, each has its own
      answers and its own quantile.
    logprobs: of all answers under the behaviour policy.
    settings: `config.experts`.

  Returns:
    (answers, metrics): the share of questions with an expert, and the mean
    probability of the experts' tokens.
  """
  own = answers.mask.shape[1] - settings.count
  mask = answers.mask[:, own:]
  lengths = mask.sum(-1)
  accuracy = answers.parts[settings.accuracy]
  # A group without a token was dropped, and its experts with it.
  formed = (answers.mask[:, :own].sum((1, 2)) > 0)[:, None] & (lengths > 0)
  if settings.format:
    formed &= answers.parts[settings.format][:, own:] == 1
  of_experts = np.where(mask, logprobs[:, own:], 0.0)
  kept = keep_experts(
    accuracy[:, own:],
    formed,
    lengths,
    (accuracy[:, :own] == 1).mean(1),
    longest=mask.shape[-1],
    solved=settings.solved,
    mean_logprobs=of_experts.sum(-1) / np.maximum(lengths, 1),
    quantile=settings.quantile or None,
  )
  used = mask & kept[..., None]
  whole = np.concatenate([answers.mask[:, :own], used], axis=1)
  probability = np.where(used, np.exp(of_experts), 0.0).sum()
  means = processes.mean(
    {
      "used": float(kept.any(1).mean()),
      "tokens": float(used.sum()),
      "probability": float(probability),
    }
  )
  return dataclasses.replace(answers, mask=whole), {
    "experts/used": means["used"],
    "experts/probability": means["probability"] / max(means["tokens"], 1e-9),
  }
