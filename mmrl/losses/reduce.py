"""Reductions of loss terms to one number, over masks and devices.

No other module handles masks and device axes. A reduction is a coefficient for
every answer token, computed from the mask alone:

    loss = sum_{p,g,r} c[p,g,r] * term[p,g,r]

A term of a whole answer [P, G] is reduced by `answer_mean`, one of a prompt [P]
(a preference between two answers, say) by `prompt_mean`, in the same way.

The coefficients of a minibatch are computed once, with denominators over the
whole minibatch on all devices, and then sliced. Gradient accumulation and
sharding therefore sum parts; they never average averages, which is wrong where
lengths differ. Answers without a valid token count in no denominator, unless
`count_empty` is set; the loss of a minibatch without any is 0.

Names in other libraries: `token_mean` is verl's token-mean and TRL's dapo,
`token_sum` verl's token-sum, `sequence_mean` its seq-mean-token-mean and, with
`count_empty`, TRL's grpo, `sequence_sum` verl's seq-mean-token-sum and, with a
`horizon`, its seq-mean-token-sum-norm and, with `count_empty` as well, TRL's
dr_grpo.

The weighted means divide by the sum of the token weights instead of the number
of tokens; a loss that multiplies by them as well would count them twice.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from mmrl.errors import UserError

# The reductions, functions of (mask, axis_name) that a config names, by the
# rank of the terms that they reduce; weighted ones take token_weights as well.
BY_RANK = {
  1: ("prompt_mean",),
  2: ("answer_mean",),
  3: (
    *("token_mean", "token_sum", "sequence_mean", "sequence_sum"),
    *("weighted_token_mean", "weighted_sequence_mean", "segment_mean"),
  ),
}
__all__ = sorted(name for names in BY_RANK.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Minibatch:
  """A minibatch as late token weights see it: devices, parts, reductions.

  A late token weight reads current scores, so it sees one part of the
  minibatch at a time. Sums over the whole minibatch are computed here.

  Attributes:
    axis_name: device axis that the minibatch is sharded over.
    parts: number of parts that it is computed in, one after the other
      (`config.train.accumulate`).
    reductions: names of the reductions of the terms that the weight acts on.
  """

  axis_name: str | None = None
  parts: int = 1
  reductions: tuple[str, ...] = ("token_mean",)

  def total(self, values: Array, option: str) -> Array:
    """Computes the sum of values over the minibatch on all devices.

    Args:
      values: of this device.
      option: the option that needs the sum, for the error.

    Raises:
      UserError: if there are several parts: no part has the others' values.
    """
    if self.parts > 1:
      raise UserError(
        f"{option} needs the whole minibatch, found {self.parts} parts; set"
        " config.train.accumulate to 1 or leave the option out"
      )
    return _total(values, self.axis_name)

  def require(self, reduction: str, option: str) -> None:
    """Checks that all terms have the reduction that an option needs.

    Raises:
      UserError: naming the other reductions.
    """
    others = [name for name in self.reductions if name != reduction]
    if others:
      raise UserError(
        f"{option} needs config.losses reduced by {reduction}, found"
        f" {', '.join(others)}; change `reduce` or leave the option out"
      )


def _total(values: Array, axis_name: str | None) -> Array:
  total = values.sum()
  return jax.lax.psum(total, axis_name) if axis_name else total


def _divide(values: Array, count: Array) -> Array:
  return values / jnp.maximum(count, 1.0)


def _count_answers(
  mask: Array, axis_name: str | None, count_empty: bool
) -> Array:
  counted = jnp.ones(mask.shape[:-1]) if count_empty else mask.any(-1)
  return _total(counted.astype(jnp.float32), axis_name)


def token_mean(
  mask: Bool[Array, "P *rest"], axis_name: str | None = None
) -> Float[Array, "P *rest"]:
  """Returns the coefficients of the mean over tokens: `mask / sum(mask)`."""
  mask = mask.astype(jnp.float32)
  return _divide(mask, _total(mask, axis_name))


def token_sum(
  mask: Bool[Array, "P G R"], axis_name: str | None = None
) -> Float[Array, "P G R"]:
  """Returns the coefficients of the sum over tokens, which scales with them."""
  return mask.astype(jnp.float32)


def sequence_mean(
  mask: Bool[Array, "P G R"],
  axis_name: str | None = None,
  *,
  count_empty: bool = False,
) -> Float[Array, "P G R"]:
  """Returns the coefficients of the mean over answers of their token means.

  Args:
    mask: True on answer tokens.
    axis_name: device axis that sums run over.
    count_empty: whether answers without a token count, with a mean of 0.
  """
  answers = _count_answers(mask, axis_name, count_empty)
  mask = mask.astype(jnp.float32)
  lengths = mask.sum(-1, keepdims=True)
  return _divide(_divide(mask, lengths), answers)


def sequence_sum(
  mask: Bool[Array, "P G R"],
  axis_name: str | None = None,
  *,
  horizon: int = 1,
  count_empty: bool = False,
) -> Float[Array, "P G R"]:
  """Returns the coefficients of the mean over answers of token sum / `horizon`.

  Args:
    mask: True on answer tokens.
    axis_name: device axis that sums run over.
    horizon: divisor of each sum. Dr.GRPO (arXiv 2503.20783) uses the token
      budget of an answer, so that no length is favoured and the loss keeps the
      size of a mean.
    count_empty: whether answers without a token count, with a sum of 0.

  Raises:
    UserError: if the horizon isn't positive.
  """
  if horizon <= 0:
    raise UserError(f"horizon must be positive, got {horizon}")
  answers = _count_answers(mask, axis_name, count_empty)
  return _divide(mask.astype(jnp.float32), answers) / horizon


def weighted_token_mean(
  mask: Bool[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  axis_name: str | None = None,
) -> Float[Array, "P G R"]:
  """Returns the coefficients `w / sum(w)` of the weighted mean over tokens."""
  weights = jnp.where(mask, token_weights.astype(jnp.float32), 0.0)
  return _share(weights, _total(weights, axis_name))


def weighted_sequence_mean(
  mask: Bool[Array, "P G R"],
  token_weights: Float[Array, "P G R"],
  axis_name: str | None = None,
) -> Float[Array, "P G R"]:
  """Returns the coefficients of the mean over answers of weighted token means.

  Answers whose tokens all have weight 0 don't count.
  """
  weights = jnp.where(mask, token_weights.astype(jnp.float32), 0.0)
  shares = _share(weights, weights.sum(-1, keepdims=True))
  return _divide(shares, _count_answers(weights > 0, axis_name, False))


def _share(values: Array, total: Array) -> Array:
  """Divides by a sum of any size; 0 where it is 0."""
  return values / jnp.where(total > 0, total, 1.0)


def segment_mean(
  mask: Bool[Array, "P G R"],
  segment_pictures: Int[Array, "P G R"],
  axis_name: str | None = None,
) -> Float[Array, "P G R"]:
  """Returns the coefficients of the mean over aligned latent segments.

  A segment's value stands at the token that opens it.
  """
  return token_mean(mask & (segment_pictures >= 0), axis_name)


def answer_mean(
  mask: Bool[Array, "P G R"], axis_name: str | None = None
) -> Float[Array, "P G"]:
  """Returns the coefficients of the mean over answers that have a token."""
  return token_mean(mask.any(-1), axis_name)


def prompt_mean(
  mask: Bool[Array, "P G R"], axis_name: str | None = None
) -> Float[Array, "P"]:
  """Returns the coefficients of the mean over prompts with whole groups.

  A term that compares the answers to a prompt needs a token in each of them.
  """
  return token_mean(mask.any(-1).all(-1), axis_name)


def total(
  values: Float[Array, "P *rest"],
  coefficients: Float[Array, "P *rest"],
  *,
  axis_name: str | None = None,
) -> Float[Array, ""]:
  """Computes the weighted sum of a term over devices.

  Where the weight is 0 the value is replaced before the product, so that
  values on padding reach neither the sum nor the gradient.
  """
  values = jnp.where(coefficients > 0, values, 0.0)
  return _total(values * coefficients, axis_name)


class Mean(NamedTuple):
  """A mean of which parts of a minibatch hold parts: both sums add up."""

  total: Array
  weight: Array


def mean(
  numbers: Num[Array, "P *rest"] | Bool[Array, "P *rest"],
  coefficients: Float[Array, "P *rest"],
  *,
  axis_name: str | None = None,
) -> Mean:
  """Returns the weighted mean of numbers to log over where they aren't NaN."""
  numbers = jax.lax.stop_gradient(numbers.astype(jnp.float32))
  known = ~jnp.isnan(numbers)
  values = jnp.where(known, numbers, 0.0), known.astype(jnp.float32)
  return Mean(*(total(x, coefficients, axis_name=axis_name) for x in values))


def finish(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a whole minibatch's metrics as numbers; a mean of nothing is 0."""

  def final(value: Any) -> Any:
    if not isinstance(value, Mean):
      return value
    return value.total / jnp.where(value.weight == 0, 1.0, value.weight)

  return {name: final(value) for name, value in metrics.items()}


def add(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
  """Combines metrics of two parts of a minibatch: sums, and maxima (`_max`)."""

  def both(name: str, value: Any) -> Any:
    if isinstance(value, Mean):
      return Mean(*map(jnp.add, value, other[name]))
    if name.endswith("_max"):
      return jnp.maximum(value, other[name])
    return value + other[name]

  return {name: both(name, value) for name, value in one.items()}


def largest(
  values: Float[Array, "P G R"],
  coefficients: Float[Array, "P G R"],
  *,
  axis_name: str | None = None,
) -> Float[Array, ""]:
  """Returns the largest value of non-zero weight over devices; at least 0."""
  found = jnp.where(coefficients > 0, values, 0.0).max()
  return jax.lax.pmax(found, axis_name) if axis_name else found
