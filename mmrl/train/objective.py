"""Objective: a weighted sum of loss terms, and its metrics."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmrl import build, errors, losses, names
from mmrl.controls import placebo
from mmrl.errors import UserError
from mmrl.losses import attention as attention_losses
from mmrl.losses import reduce, signal, surrogates
from mmrl.losses import weight as weight_lib
from mmrl.losses.state import Measured, Stateful
from mmrl.losses.weight import Weight
from mmrl.types import PyTree

MOVED = "attention_moved"
# Means of the divergence, and the answers that they are over.
_MOVED_MEANS = {"mean": "token_mean", "good": "good", "bad": "bad"}
# How sums are called that go with metrics through the parts of a minibatch.
_SIGNAL = "signal/"
_REDUCTIONS = tuple(reduce.__all__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a term counts in the objective.

  Attributes:
    name: its key in `config.losses`.
    weight: its factor, or the share of the gradient that it has.
    reduce: the reduction.
    init, update, layers: of a term with state; see `Stateful`.
    placebo: kind of placebo that its advantages are; see `mmrl.controls`.
  """

  name: str
  weight: Weight
  reduce: build.Bound
  init: Callable | None = None
  update: Callable | None = None
  layers: Callable | None = None
  placebo: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term(Settings):
  """One weighted term of the objective: `weight * reduce(bound(...))`."""

  bound: build.Bound

  @property
  def reduction(self) -> str:
    """Returns the key of the coefficients: reduction, options and rows."""
    options = sorted(self.reduce.options.items())
    rows = ["all"] if self.reads_all else []
    parts = [self.reduce.name, *(f"{k}={v}" for k, v in options), *rows]
    return ",".join(parts)

  @property
  def reads_all(self) -> bool:
    """Tells whether the term also reads answers that weren't sampled."""
    return "sampled" in self.bound.needs

  @property
  def needs_attention(self) -> bool:
    """Tells whether the term reads the attention of the current parameters."""
    return bool({"attention", MOVED} & set(self.bound.needs))

  @property
  def needs_moved(self) -> bool:
    """Tells whether the term reads the divergence of attention."""
    return MOVED in self.bound.needs

  def __call__(self, context: Mapping[str, Any]) -> tuple[Measured, PyTree]:
    """Computes the term with its numbers and, of one with state, statistics.

    Raises:
      UserError: if its reduction is for terms of another rank.
    """
    if self.placebo:
      own = (context[name] for name in ("advantages", "tokens", "mask"))
      context = {**context, "advantages": placebo.permute(self.placebo, *own)}
    found = self.bound(context)
    values, statistics = found if self.init else (found, None)
    if not isinstance(values, Measured):
      values = Measured(values, {})
    if not self.init:
      self.bound.check_array(values.values, context, 1, 2, 3)
    rank = values.values.ndim
    fitting = reduce.BY_RANK.get(rank, ())
    # What one of a file reduces is its own affair.
    if self.reduce.name not in fitting and not build.file_of(self.reduce.name):
      letters = ", ".join("PGR"[:rank])
      raise UserError(
        f"{self.reduce.where}: expected a reduction of a term [{letters}], such"
        f" as {', '.join(fitting)}, found {self.reduce.name}"
      )
    return values, statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(Settings):
  """A term of the config whose function is looked up, but not bound yet.

  Attributes:
    spec: of its function.
    function: takes data by name.
    options: its hyper-parameters.
  """

  spec: Mapping[str, Any]
  function: Callable
  options: Mapping[str, Any]


def resolve_terms(specs: Mapping[str, Mapping]) -> list[Resolved]:
  """Looks up the terms of a config, leaving out those of weight 0.

  A term that is left out isn't computed: RAL with weight 0 is exactly the
  program of GRPO.

  Args:
    specs: per term, the function's spec, its `weight` and its `reduce`, a
      name or a spec of `mmrl.losses.reduce`; perhaps its `placebo`.

  Raises:
    UserError: naming the config field that is wrong.
  """
  found = []
  for name, given in specs.items():
    where, spec = f"config.losses.{name}", dict(given)
    try:
      weight, reduce_ = spec.pop("weight"), spec.pop("reduce")
    except KeyError as error:
      raise UserError(f"{where}: expected a {error} beside the name") from error
    weight = weight_lib.parse(weight, f"{where}.weight")
    kind = spec.pop("placebo", "")
    placebo.check(kind, where)
    function, options = build.resolve(losses, spec, where)
    if kind and "advantages" not in build.required(function):
      raise UserError(
        f"{where}.placebo: expected a term that reads advantages, which are"
        f" permuted, found {spec['name']}"
      )
    reduction = _bind_reduction(reduce_, f"{where}.reduce")
    state = {}
    if build.signature(function).return_annotation is Stateful:
      with errors.of_field(where):
        made = function(**options)
      function, options = made.term, {}
      state = {n: x for n, x in made._asdict().items() if n != "term"}
    settings = Settings(name, weight, reduction, placebo=kind, **state)
    if weight:
      own: Any = {"spec": spec, "function": function, "options": options}
      found.append(Resolved(**vars(settings), **own))
  if not found:
    raise UserError("config.losses: expected a term of non-zero weight")
  weight_lib.check(weights_of(found))
  return found


def weights_of(terms: Sequence[Term | Resolved]) -> dict[str, Weight]:
  """Returns the weights of terms, by their names."""
  return {term.name: term.weight for term in terms}


def bind_terms(
  resolved: Sequence[Resolved],
  *,
  provided: Sequence[str],
  remedies: Mapping[str, str],
) -> tuple[Term, ...]:
  """Binds terms to the data that a run provides later; see `build.bind`.

  Raises:
    UserError: naming the config field that is wrong.
  """
  derived = [
    name for name, of in names.DERIVED.items() if set(of) <= set(provided)
  ]
  terms = []
  for one in resolved:
    where = f"config.losses.{one.name}"
    # Of the reduction's data this run may have less than there is.
    of = one.reduce
    build.bind_function(
      *(of.name, of.function, of.options, of.where),
      provided=[*provided, "mask", "token_weights", "axis_name"],
      remedies=remedies,
    )
    own = ["learned", "running"] if one.init else []
    bound = build.bind_function(
      one.spec["name"],
      one.function,
      one.options,
      where,
      provided=[*provided, *derived, *own],
      remedies=remedies,
    )
    fields = [field.name for field in dataclasses.fields(Settings)]
    terms.append(Term(**{n: getattr(one, n) for n in fields}, bound=bound))
  return tuple(terms)


def _bind_reduction(spec: Any, where: str) -> build.Bound:
  """Binds a reduction to mask, token weights and device axis."""
  if isinstance(spec, str):
    spec = {"name": spec}
  if not isinstance(spec, Mapping):
    raise UserError(
      f"{where}: expected one of {', '.join(_REDUCTIONS)}, or a dict with the"
      f" name and its options, found {spec!r}"
    )
  provided = ("mask", "token_weights", "axis_name", "segment_pictures")
  return build.bind(reduce, spec, where, provided=provided)


def reduction_coefficients(
  terms: Sequence[Term],
  mask: Bool[Array, "P G R"],
  fields: Mapping[str, Array],
  *,
  axis_name: str | None = None,
) -> dict[str, Array]:
  """Computes the coefficients of every reduction over the whole minibatch.

  A term that doesn't read `sampled` is reduced over the answers that are, as it
  would be without others in the group. Metrics use up to three more reductions
  of those answers: `token_mean` and, where attention is measured, the means
  over `good` answers (advantage above 0) and `bad` ones (below 0).

  Args:
    terms: from `bind_terms`.
    mask: True on answer tokens.
    fields: the batch's.
    axis_name: device axis that sums run over.
  """
  own = mask
  if "sampled" in fields:
    own = mask & fields["sampled"][..., None]
  coefficients = {"token_mean": reduce.token_mean(own, axis_name)}
  if any(term.needs_moved for term in terms):
    advantages = surrogates.per_token(fields["advantages"])
    coefficients["good"] = reduce.token_mean(own & (advantages > 0), axis_name)
    coefficients["bad"] = reduce.token_mean(own & (advantages < 0), axis_name)
  for term in terms:
    if term.reduction not in coefficients:
      rows = mask if term.reads_all else own
      context = {**fields, "mask": rows, "axis_name": axis_name}
      coefficients[term.reduction] = term.reduce(context)
  return coefficients


def minibatch(
  terms: Sequence[Term], parts: int, axis_name: str | None = None
) -> reduce.Minibatch:
  """Describes a minibatch and its terms' reductions for late token weights."""
  weighed = [term for term in terms if "token_weights" in term.bound.needs]
  names = sorted({term.reduce.name for term in weighed})
  return reduce.Minibatch(axis_name, parts, tuple(names))


def objective(
  terms: Sequence[Term],
  context: Mapping[str, Any],
  coefficients: Mapping[str, Array],
  *,
  axis_name: str | None = None,
  signals: bool = False,
) -> tuple[Array, tuple[dict[str, Array], dict[str, PyTree]]]:
  """Computes the objective to minimise, the weighted sum of terms, and metrics.

  Args:
    terms: from `bind_terms`.
    context: from `Batch.context`, with the scores of the current parameters;
      `learned`, `running` and `norms` hold those of all terms, by name.
    coefficients: from `reduction_coefficients`, sliced like the fields.
    axis_name: device axis that sums run over.
    signals: whether metrics also have what `without_signal` takes out of them.

  Returns:
    (loss, (metrics, statistics)). Metrics are sums, whose coefficients include
    the denominator so that parts add up, maxima, and means: see `reduce.add`.
    Statistics are those of stateful terms, by name. The divergence of attention
    is a metric only if a term reads it.
  """
  context = dict(context)
  if any(term.needs_moved for term in terms):
    context[MOVED] = attention_losses.attention_divergence(
      context["attention"], context["attention_old"], context["mask"]
    )
  metrics: dict[str, Any] = {}
  loss, statistics = jnp.zeros(()), {}
  factors = weight_lib.current(weights_of(terms), context.get("norms", {}))
  for term in terms:
    own = {}
    if term.init:
      # A term without parameters of its own has no entry.
      learned = context["learned"].get(term.name, {})
      own = {"learned": learned, "running": context["running"][term.name]}
    measured, found = term(context | own)
    if term.init:
      statistics[term.name] = jax.lax.stop_gradient(found)
    weights = coefficients[term.reduction]
    value = reduce.total(measured.values, weights, axis_name=axis_name)
    loss += factors[term.name] * value
    metrics[f"loss/{term.name}"] = value
    if signals and _measurable(terms):
      metrics[f"{_SIGNAL}{term.name}"] = _squares(
        term, context | own, coefficients[term.reduction]
      )
    for name, numbers in measured.numbers.items():
      metrics[f"{term.name}/{name}"] = reduce.mean(
        numbers, weights, axis_name=axis_name
      )
  metrics["loss/total"] = loss

  metrics |= _policy_metrics(context, coefficients, axis_name)
  return loss, (metrics, statistics)


def _measurable(terms: Sequence[Term]) -> bool:
  return all(signal.measurable(term.bound.needs) for term in terms)


def _squares(
  term: Term, context: Mapping[str, Any], coefficients: Array
) -> Array:
  def total(scores):
    measured, _ = term({**context, **scores})
    return reduce.total(measured.values, coefficients)

  return signal.squares(total, context, term.bound.needs, coefficients)


def without_signal(
  terms: Sequence[Term], metrics: dict[str, Array], dtype: str
) -> Bool[Array, ""] | None:
  """Tells whether a minibatch is without a signal: see `mmrl.losses.signal`.

  Args:
    terms: of the objective.
    metrics: of the whole minibatch, from `objective` with `signals`; what is of
      signals is taken out.
    dtype: that the model computes in.

  Returns:
    None if no minibatch can be.
  """
  if not _measurable(terms):
    return None
  found = [
    signal.silent(
      metrics.pop(f"{_SIGNAL}{term.name}"),
      signal.tolerance(term.bound.needs, dtype),
    )
    for term in terms
  ]
  return jnp.stack(found).all()


def _policy_metrics(
  context: Mapping[str, Any], coefficients: Mapping[str, Array], axis_name
) -> dict[str, Array]:
  """Computes means over tokens; of the divergence over good and bad, too."""

  def mean(values, kind="token_mean"):
    values = jax.lax.stop_gradient(values)
    return reduce.total(values, coefficients[kind], axis_name=axis_name)

  metrics = {"policy/entropy": mean(context["entropies"])}
  if "logprobs_old" in context:
    ratio = surrogates.token_ratio(
      context["logprobs"], context["logprobs_old"], context["mask"]
    )
    metrics["policy/ratio_deviation"] = mean(jnp.abs(ratio - 1.0))
  if MOVED in context:
    moved = context[MOVED]
    for name, kind in _MOVED_MEANS.items():
      metrics[f"attention/jsd_{name}"] = mean(moved, kind)
    metrics["attention/jsd_max"] = reduce.largest(
      jax.lax.stop_gradient(moved),
      coefficients["token_mean"],
      axis_name=axis_name,
    )
  return metrics
