"""Objective: a weighted sum of loss terms, and its metrics."""

from collections.abc import Mapping, Sequence
import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl import build, losses
from mmrl.errors import UserError
from mmrl.losses import attention as attention_losses
from mmrl.losses import policy, reduce
from mmrl.types import Scores

# Field: divergence of each token's attention from the behaviour policy's.
MOVED = "attention_moved"
_REDUCTIONS = tuple(reduce.__all__)


@dataclasses.dataclass(frozen=True)
class Term:
  """One weighted term of the objective: `weight * reduce(function(...))`."""

  name: str
  bound: build.Bound
  weight: float
  reduce: build.Bound

  @property
  def reduction(self) -> str:
    """Returns the key of the reduction's weights: name, options and rows."""
    options = sorted(self.reduce.options.items())
    rows = ["experts"] if self.reads_experts else []
    parts = [self.reduce.name, *(f"{k}={v}" for k, v in options), *rows]
    return ",".join(parts)

  @property
  def reads_experts(self) -> bool:
    """Tells whether the term also reads expert rows."""
    return "expert" in self.bound.needs

  @property
  def needs_attention(self) -> bool:
    """Tells whether the term reads the attention of the current parameters."""
    return bool({"attention", MOVED} & set(self.bound.needs))

  @property
  def needs_moved(self) -> bool:
    """Tells whether the term reads the divergence of attention."""
    return MOVED in self.bound.needs


def build_terms(
  specs: Mapping[str, Mapping],
  *,
  provided: Sequence[str],
  remedies: Mapping[str, str],
) -> tuple[Term, ...]:
  """Builds the terms of a config, leaving out those of weight 0.

  A term that is left out isn't computed: RAL with weight 0 is exactly the
  program of GRPO.

  Args:
    specs: per term, the function's spec, its `weight` and its `reduce`, a
      name or a spec of `mmrl.losses.reduce`.
    provided: names of the data available later; `attention` and `attention_old`
      also provide `attention_moved`.
    remedies: see `build.bind`.

  Raises:
    UserError: naming the config field that is wrong.
  """
  if {"attention", "attention_old"} <= set(provided):
    provided = (*provided, MOVED)
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
  """Binds a reduction to mask and device axis."""
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
  fields: Mapping[str, Array] = types.MappingProxyType({}),
  *,
  axis_name: str | None = None,
) -> dict[str, Array]:
  """Computes the weights of every reduction in use over the whole minibatch.

  A term that doesn't read `expert` is reduced over the policy's own answers, as
  it would be without experts. Metrics use up to three more weights over those
  answers: `token_mean` and, where attention is measured, the means over `good`
  answers (advantage above 0) and `bad` ones (below 0).

  Args:
    terms: from `build_terms`.
    mask: True on answer tokens.
    fields: the batch's; only `expert` and `advantages` are read.
    axis_name: device axis that sums run over.
  """
  own = mask
  if "expert" in fields:
    own = mask & ~fields["expert"][..., None]
  weights = {"token_mean": reduce.token_mean(own, axis_name)}
  if any(term.needs_moved for term in terms):
    advantages = policy.per_token(fields["advantages"])
    weights["good"] = reduce.token_mean(own & (advantages > 0), axis_name)
    weights["bad"] = reduce.token_mean(own & (advantages < 0), axis_name)
  for term in terms:
    if term.reduction not in weights:
      rows = mask if term.reads_experts else own
      context = {"mask": rows, "axis_name": axis_name}
      weights[term.reduction] = term.reduce(context)
  return weights


def minibatch(
  terms: Sequence[Term], parts: int, axis_name: str | None = None
) -> reduce.Minibatch:
  """Describes a minibatch and its terms' reductions for late token weights."""
  weighed = [term for term in terms if "token_weights" in term.bound.needs]
  names = sorted({term.reduce.name for term in weighed})
  return reduce.Minibatch(axis_name, parts, tuple(names))


def objective(
  terms: Sequence[Term],
  scores: Scores,
  fields: Mapping[str, Array],
  weights: Mapping[str, Array],
  *,
  axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Computes the objective to minimise, the weighted sum of terms, and metrics.

  Args:
    terms: from `build_terms`.
    scores: of the current parameters.
    fields: `mask` and the batch's fields.
    weights: from `reduction_weights`, sliced like the fields.
    axis_name: device axis that sums run over.

  Returns:
    (loss, metrics). Metrics are sums over tokens, whose weights include the
    denominator so that micro-batches add up, and maxima: see `add_metrics`.
    The divergence of attention is a metric only if a term reads it; it is never
    computed for metrics alone.
  """
  context = dict(fields, **vars(scores))
  if any(term.needs_moved for term in terms):
    context[MOVED] = attention_losses.attention_divergence(
      context["attention"], context["attention_old"], context["mask"]
    )
  loss, metrics = jnp.zeros(()), {}
  for term in terms:
    values = term.bound(context)
    value = reduce.total(values, weights[term.reduction], axis_name=axis_name)
    loss += term.weight * value
    metrics[f"loss/{term.name}"] = value
  metrics["loss/total"] = loss

  metrics |= _policy_metrics(context, weights, axis_name)
  if MOVED in context:
    metrics |= _attention_metrics(context[MOVED], weights, axis_name)
  return loss, metrics


def add_metrics(
  one: Mapping[str, Array], other: Mapping[str, Array]
) -> dict[str, Array]:
  """Combines metrics of two parts of a minibatch: sums, and maxima (`_max`)."""
  return {
    name: jnp.maximum(value, other[name])
    if name.endswith("_max")
    else value + other[name]
    for name, value in one.items()
  }


def _policy_metrics(
  context: Mapping[str, Any], weights: Mapping[str, Array], axis_name
) -> dict[str, Array]:
  def mean(values):
    values = jax.lax.stop_gradient(values)
    return reduce.total(values, weights["token_mean"], axis_name=axis_name)

  metrics = {"policy/entropy": mean(context["entropies"])}
  if "logprobs_old" in context:
    ratio = policy.token_ratio(
      context["logprobs"], context["logprobs_old"], context["mask"]
    )
    metrics["policy/ratio_deviation"] = mean(jnp.abs(ratio - 1.0))
  return metrics


def _attention_metrics(
  moved: Float[Array, "P G R"], weights: Mapping[str, Array], axis_name
) -> dict[str, Array]:
  """Computes the divergence's maximum and means (all, good, bad answers)."""
  moved = jax.lax.stop_gradient(moved)

  def mean(kind):
    return reduce.total(moved, weights[kind], axis_name=axis_name)

  return {
    "attention/jsd_mean": mean("token_mean"),
    "attention/jsd_good": mean("good"),
    "attention/jsd_bad": mean("bad"),
    "attention/jsd_max": reduce.largest(
      moved, weights["token_mean"], axis_name=axis_name
    ),
  }
