"""Expert trajectories as additional answers of a group (TGRL)."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl import data
from mmrl.errors import UserError, say
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Request, Setup, Source
from mmrl.types import Batch


class WithExperts(Source):
  """Appends experts' rows to the policy's own answers of each group."""

  def __init__(self, setup: Setup, inner: Source, path: str, count: int, keep):
    self._setup, self._inner, self._path = setup, inner, path
    self._count, self._keep = count, keep
    self._experts: data.Trajectories | None = None
    self.group = inner.group + count
    self.temperature, self.draws = inner.temperature, inner.draws
    self.fields = (*inner.fields, "sampled")
    self.reads = (*inner.reads, "logprobs_old")
    self.measures, self.learns = inner.measures, inner.learns
    self.one_size = inner.one_size

  def open(self, questions, processor):
    self._inner.open(questions, processor)
    self._experts = data.Trajectories(
      self._path,
      known=questions.names(),
      processor=processor,
      length=self._setup.length,
      count=self._count,
    )
    if not jax.process_index():
      say(f"{self._path}: {self._experts}")

  def calls(self, state, prompt, key, held=None):
    batch = yield from self._inner.calls(state, prompt, key, held)
    prompts, answers, length = batch.tokens.shape
    group, array = (prompts, answers + self._count), self._setup.shape
    rows = {
      name: array(*group, *x.shape[2:], dtype=x.dtype)
      for name, x in batch.fields.items()
    }
    return dataclasses.replace(
      batch,
      tokens=array(*group, length, dtype="int32"),
      mask=array(*group, length, dtype=bool),
      fields=rows | {"sampled": array(*group, dtype=bool)},
    )

  def collect(self, request: Request):
    assert self._experts is not None, "open comes first"
    answers, values = self._inner.collect(request)
    return append(answers, self._experts, self._setup.layout), values

  def choose(self, answers, fields):
    own = self._inner.group
    before = dataclasses.replace(
      answers,
      tokens=answers.tokens[:, :own],
      mask=answers.mask[:, :own],
      parts={name: x[:, :own] for name, x in answers.parts.items()},
    )
    chosen, values = self._inner.choose(before, fields)
    if chosen is None:
      chosen = np.ones(before.mask.shape[:2], bool)
    experts, more = choose(
      answers, chosen, fields["logprobs_old"], **self._keep
    )
    return np.concatenate([chosen, experts], axis=1), values | more


def with_experts(
  setup: Setup,
  *,
  of: Mapping[str, Any],
  path: str,
  accuracy: str,
  format: str = "",
  count: int = 1,
  solved: float = 0.5,
  quantile: float = 0.0,
) -> Source:
  """Adds trajectories of stronger models to each group, `count` per question.

  A trajectory is used if it is right and well-formed, and too few of the
  policy's own answers are right; see `keep_experts`.

  Args:
    setup: of the run.
    of: spec of where the other answers come from.
    path: JSON Lines of {"name": of the question, "text"}.
    accuracy: name of the reward that is 1 for a right answer.
    format: name of the reward that is 1 for a well-formed answer; "" for none.
    count: rows per group.
    solved: share of right answers from which on experts aren't used.
    quantile: share of each process's least likely trajectories that is left
      out.

  Raises:
    UserError: if an option is outside its range, or no such reward is there.

  Reference: TGRL, arXiv 2603.26126.
  """
  for option, name in (("accuracy", accuracy), ("format", format)):
    if name not in setup.rewards and (name or option == "accuracy"):
      raise UserError(
        f"{option}: expected one of config.rewards, {', '.join(setup.rewards)},"
        f" found {name!r}"
      )
  if count < 1:
    raise UserError(f"count: expected at least 1, found {count}")
  check_options(solved, quantile)
  inner = setup.inner(of, "config.rollout.of")
  keep = {
    "accuracy": accuracy,
    "form": format,
    "solved": solved,
    "quantile": quantile,
  }
  return WithExperts(setup, inner, path, count, keep)


def append(
  answers: Answers, experts: data.Trajectories, layout: Layout
) -> Answers:
  """Appends the experts' rows to the policy's own answers of each group."""
  rows = experts.rows(answers.examples)
  tokens = np.concatenate([answers.tokens, rows.tokens], axis=1)
  mask = np.concatenate([answers.mask, rows.mask], axis=1)
  batch, shape = answers.batch, rows.mask.shape
  sampled = np.ones(mask.shape[:2], bool)
  sampled[:, answers.mask.shape[1] :] = False
  # A trajectory is closed by its end of sequence; nobody knows with which
  # probability an expert wrote a token.
  unknown: dict[str, Any] = {
    "ended": rows.mask.any(-1),
    "logprobs_sampler": np.zeros(shape, np.float32),
  }
  fields = {
    name: np.concatenate(
      [layout.local(x), unknown[name].astype(x.dtype)], axis=1
    )
    for name, x in batch.fields.items()
  }
  batch = Batch(
    prompt=batch.prompt,
    visual=batch.visual,
    tokens=layout.put(tokens),
    mask=layout.put(mask),
    fields=layout.put(fields | {"sampled": sampled}),
    prefix=batch.prefix,
  )
  return dataclasses.replace(answers, batch=batch, tokens=tokens, mask=mask)


def choose(
  answers: Answers,
  chosen: np.ndarray,
  logprobs: np.ndarray,
  *,
  accuracy: str,
  form: str,
  solved: float,
  quantile: float,
) -> tuple[np.ndarray, dict[str, float]]:
  """Chooses the expert rows that the batch learns from.

  With several processes, each has its own answers and its own quantile.

  Args:
    answers: graded, with expert rows.
    chosen: [P, own], which of the policy's own answers are kept.
    logprobs: [P, G, R], of all answers under the behaviour policy.
    accuracy, form, solved, quantile: see `with_experts`.

  Returns:
    (kept [P, experts], numbers to log): the share of questions with an expert,
    and the mean probability of the experts' tokens.
  """
  own = chosen.shape[1]
  mask, right = answers.mask[:, own:], answers.parts[accuracy]
  lengths = mask.sum(-1)
  # A group whose answers are all dropped loses its experts, too.
  formed = np.any(chosen, axis=1, keepdims=True) & (lengths > 0)
  if form:
    formed &= answers.parts[form][:, own:] == 1
  of_experts = np.where(mask, logprobs[:, own:], 0.0)
  kept: Any = keep_experts(
    right[:, own:],
    formed,
    lengths,
    np.mean(right[:, :own] == 1, axis=1),
    longest=mask.shape[-1],
    solved=solved,
    mean_logprobs=of_experts.sum(-1) / np.maximum(lengths, 1),
    quantile=quantile or None,
  )
  used = mask & kept[..., None]
  probability = np.where(used, np.exp(of_experts), 0.0).sum()
  means = processes.mean(
    {
      "used": float(kept.any(1).mean()),
      "tokens": float(used.sum()),
      "probability": float(probability),
    }
  )
  return kept, {
    "experts/used": means["used"],
    "experts/probability": means["probability"] / max(means["tokens"], 1e-9),
  }


def check_options(solved: float, quantile: float | None) -> None:
  """Checks the options of `keep_experts`.

  Raises:
    UserError: if a number is outside its range.
  """
  if not 0 < solved <= 1:
    raise UserError(f"solved must be in (0, 1], got {solved}")
  if quantile is not None and not 0 <= quantile < 1:
    raise UserError(f"quantile must be in [0, 1), got {quantile}")


def keep_experts(
  accuracy: Float[np.ndarray, "P experts"],
  formed: Bool[np.ndarray, "P experts"],
  lengths: Int[np.ndarray, "P experts"],
  policy_accuracy: Float[np.ndarray, "P"],
  *,
  longest: int,
  solved: float = 0.5,
  mean_logprobs: Float[np.ndarray, "P experts"] | None = None,
  quantile: float | None = None,
) -> Bool[np.ndarray, "P experts"]:
  """Selects right, well-formed trajectories of questions not yet solved.

      keep = accuracy = 1  and  formed  and  1 <= length <= longest
             and  policy_accuracy < solved
             and, with a quantile,  mean_logprob >= that of those kept so far

  A wrong expert would have a negative advantage and push good text down. An
  expert of a solved question adds gradient without information. A very unlikely
  one has a noisy gradient.

  Args:
    accuracy: of each trajectory, by the verifier of the sampled answers; 1 is
      right.
    formed: whether each trajectory is well-formed.
    lengths: number of tokens of each; 0 where there is no trajectory.
    policy_accuracy: share of right ones among the question's sampled answers.
    longest: R.
    solved: in (0, 1]; accuracy of the policy from which on a question's experts
      are left out. 1 leaves them out only where every answer is right.
    mean_logprobs: mean log-probability of each trajectory's tokens under the
      behaviour policy; read only where all other conditions hold.
    quantile: in [0, 1); share of the least likely that is left out, over all
      trajectories given. None leaves none out.

  Returns:
    Which trajectories are kept.

  Raises:
    UserError: if a number is outside its range, or a quantile comes without
      `mean_logprobs`.

  Reference: TGRL, arXiv 2603.26126.
  Reconstructed: only the abstract of the paper could be read, which mentions
  that trajectories are filtered but not how. The rule and solved = 0.5 are
  ours.
  """
  check_options(solved, quantile)
  keep = (accuracy == 1) & formed & (lengths >= 1) & (lengths <= longest)
  keep &= (policy_accuracy < solved)[:, None]
  if quantile is None:
    return keep
  if mean_logprobs is None:
    raise UserError("expected mean_logprobs with a quantile, got None")
  if keep.any():
    keep &= mean_logprobs >= np.quantile(mean_logprobs[keep], quantile)
  return keep
