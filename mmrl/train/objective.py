"""The objective: a named dict of weighted terms, and its metrics."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmrl import build, losses
from mmrl.errors import UserError
from mmrl.losses import attention as attention_losses
from mmrl.losses import policy, reduce
from mmrl.models import map_rows
from mmrl.types import Scores

_REDUCTIONS = tuple(reduce.__all__)


@dataclasses.dataclass(frozen=True)
class Term:
  """One weighted term: `weight * reduce(function(...))`."""

  name: str
  bound: build.Bound
  weight: float
  reduce: build.Bound

  @property
  def reduction(self) -> str:
    """Key of the reduction's weights: its name, options and rows."""
    options = sorted(self.reduce.options.items())
    rows = ["experts"] if self.reads_experts else []
    parts = [self.reduce.name, *(f"{k}={v}" for k, v in options), *rows]
    return ",".join(parts)

  @property
  def reads_experts(self) -> bool:
    """Whether the term is of the experts' rows, too."""
    return "expert" in self.bound.needs

  @property
  def needs_attention(self) -> bool:
    """Whether the term reads the attention of the current parameters."""
    return "attention" in self.bound.needs


def build_terms(
  specs: Mapping[str, Mapping],
  *,
  provided: Sequence[str],
  remedies: Mapping[str, str],
) -> tuple[Term, ...]:
  """Terms of a config, those of weight 0 left out.

  A term that is left out costs nothing and changes nothing: RAL with weight
  0 is the very program that GRPO is.

  Args:
    specs: per term, the function's spec, its `weight` and its `reduce`, a
      name or a spec of `mmrl.losses.reduce`.
    provided: names of the data there will be.
    remedies: see `build.bind`.

  Raises:
    UserError: naming the config field that is wrong.
  """
  terms = []
  for name, spec in specs.items():
    where = f"config.losses.{name}"
    spec = dict(spec)
    try:
      weight, reduction = spec.pop("weight"), spec.pop("reduce")
    except KeyError as error:
      raise UserError(f"{where}: expected a {error} beside the name") from error
    bound = build.bind(
      losses, spec, where, provided=provided, remedies=remedies
    )
    reduction = _bind_reduction(reduction, f"{where}.reduce")
    if weight:
      terms.append(Term(name, bound, weight, reduction))
  if not terms:
    raise UserError("config.losses: expected a term of non-zero weight")
  return tuple(terms)


def _bind_reduction(spec: Any, where: str) -> build.Bound:
  """A reduction as a function of mask and device axis."""
  if isinstance(spec, str):
    spec = {"name": spec}
  if not isinstance(spec, Mapping):
    raise UserError(
      f"{where}: expected one of {', '.join(_REDUCTIONS)}, or a dict with the"
      f" name and its options, found {spec!r}"
    )
  return build.bind(reduce, spec, where, provided=("mask", "axis_name"))


def reduction_weights(
  terms: Sequence[Term],
  mask: Bool[Array, "P G R"],
  expert: Bool[Array, "P G"] | None = None,
  *,
  axis_name: str | None = None,
) -> dict[str, Array]:
  """Token weights of every reduction in use, over the whole minibatch.

  A term that doesn't know of experts is reduced over the policy's own answers,
  as it would be without experts. `token_mean` is always among the weights:
  metrics are averaged with it, over the policy's own answers.
  """
  own = mask if expert is None else mask & ~expert[..., None]
  weights = {"token_mean": reduce.token_mean(own, axis_name)}
  for term in terms:
    if term.reduction not in weights:
      rows = mask if term.reads_experts else own
      context = {"mask": rows, "axis_name": axis_name}
      weights[term.reduction] = term.reduce(context)
  return weights


def objective(
  terms: Sequence[Term],
  scores: Scores,
  fields: Mapping[str, Array],
  weights: Mapping[str, Array],
  *,
  axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Weighted sum of the terms, minimised, and metrics.

  Args:
    terms: from `build_terms`.
    scores: of the current parameters.
    fields: `mask` and the batch's fields.
    weights: from `reduction_weights`, sliced like the fields.
    axis_name: device axis that sums run over.

  Returns:
    (loss, metrics). Metrics are sums over tokens with weights that already
    hold the denominator, so those of micro-batches add up.
  """
  context = dict(fields, **vars(scores))
  loss, metrics = jnp.zeros(()), {}
  for term in terms:
    values = term.bound(context)
    value = reduce.total(values, weights[term.reduction], axis_name=axis_name)
    loss += term.weight * value
    metrics[f"loss/{term.name}"] = value
  metrics["loss/total"] = loss

  def mean(values):
    values = jax.lax.stop_gradient(values)
    return reduce.total(values, weights["token_mean"], axis_name=axis_name)

  metrics |= _policy_metrics(context, mean)
  if scores.attention is not None:
    metrics |= _attention_metrics(context, mean)
  return loss, metrics


def _policy_metrics(context: Mapping[str, Any], mean) -> dict[str, Array]:
  metrics = {"policy/entropy": mean(context["entropies"])}
  if "logprobs_old" in context:
    ratio = policy.token_ratio(
      context["logprobs"], context["logprobs_old"], context["mask"]
    )
    metrics["policy/ratio_deviation"] = mean(jnp.abs(ratio - 1.0))
  return metrics


def _attention_metrics(context: Mapping[str, Any], mean) -> dict[str, Array]:
  """How far attention has moved, for all answers, good ones and bad ones."""
  divergence = map_rows(
    attention_losses.jensen_shannon,
    *jax.lax.stop_gradient((context["attention"], context["attention_old"])),
  )
  good = policy.per_token(context["advantages"]) > 0
  bad = policy.per_token(context["advantages"]) < 0
  return {
    "attention/jsd_mean": mean(divergence),
    "attention/jsd_good": mean(jnp.where(good, divergence, 0.0)),
    "attention/jsd_bad": mean(jnp.where(bad, divergence, 0.0)),
  }
