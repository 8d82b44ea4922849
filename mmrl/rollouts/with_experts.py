"""Expert trajectories as additional answers of a group (TGRL)."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from mmrl import data
from mmrl.errors import UserError, say
from mmrl.machines import processes
from mmrl.machines.sharding import Layout
from mmrl.rollouts import expert_filter
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
  policy's own answers are right; see `expert_filter.keep_experts`.

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
  expert_filter.check_options(solved, quantile)
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
  kept: Any = expert_filter.keep_experts(
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
