"""Weights of loss terms: numbers, or those that give a share of the gradient.

A term i with `weight={"share": s_i}` has the weight with which its gradient is
that share of the sum of all terms' gradient norms, other terms f being as they
are:

    |w_i g_i| / (sum_f |w_f g_f| + sum_j |w_j g_j|) = s_i
    w_i = s_i sum_f |w_f g_f| / ((1 - sum_j s_j) |g_i|),    at most `most`

j runs over the terms with a share. Norms are measured every
`config.shares.every` steps, before the last update of a batch, on its first
prompts. Of the ratio sum_f |w_f g_f| / |g_i| the geometric mean over the last
`over` measurements counts: a running mean of its logarithm, whose rate is 1 /
over at least. From step to step the norm of a term that depends on drift moves
by a factor of ten, and one large value would rule an arithmetic mean for long.
Measurements in which a norm is 0 or infinite are left out. Until the first one
the weight is 0. A weight has no gradient.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl import errors
from mmrl.errors import UserError
from mmrl.types import pytree


class Share(NamedTuple):
  """A share of the gradient, which a term's weight gives it.

  Attributes:
    share: in [0, 1).
    over: number of measurements that count.
    most: the largest weight.
  """

  share: float
  over: int = 10
  most: float = 1000.0

  def __bool__(self) -> bool:
    """Tells whether the term counts, as a number does of itself."""
    return bool(self.share)


Weight = float | Share


@pytree
class Norms:
  """Running mean of the ratio of gradient norms that gives a term its weight.

  Attributes:
    count: number of measurements.
    ratio: running mean of the logarithm of the sum of the norms of the terms
      whose weights are numbers over the norm of this one at weight 1.
  """

  count: Int[Array, ""]
  ratio: Float[Array, ""]


def parse(value: Any, where: str) -> Weight:
  """Reads a weight of a config.

  Args:
    value: a number, or a dict with the fields of `Share`.
    where: the config field.

  Raises:
    UserError: if it is neither, or a field is outside its range.
  """
  if errors.is_number(value):
    return float(value)
  if not isinstance(value, Mapping):
    raise UserError(
      f"{where}: expected a number, or a dict with share, over and most, found"
      f" {value!r}"
    )
  for key, number in value.items():
    if key not in Share._fields:
      near = errors.nearest(key, Share._fields)
      raise UserError(
        f"{where}: expected share, over and most, found {key!r}{near}"
      )
    if not errors.is_number(number):
      raise UserError(f"{where}.{key}: expected a number, found {number!r}")
  if "share" not in value:
    raise UserError(f"{where}: expected a share, found {dict(value)}")
  found = Share(**value)
  if not 0 <= found.share < 1:
    raise UserError(f"{where}.share: expected [0, 1), found {found.share}")
  if found.over < 1 or found.over % 1 or found.most <= 0:
    raise UserError(
      f"{where}: expected over, a whole number of at least 1, and most above 0,"
      f" found {found.over} and {found.most}"
    )
  return found


def check(weights: Mapping[str, Weight]) -> None:
  """Checks that the shares of an objective leave some to other terms.

  Raises:
    UserError: if they add up to 1, or there is no other term.
  """
  shares = {k: w.share for k, w in weights.items() if isinstance(w, Share)}
  if sum(shares.values()) >= 1:
    raise UserError(
      "config.losses: expected shares that add up to less than 1, found"
      f" {sum(shares.values()):g} of {', '.join(shares)}"
    )
  if shares and len(shares) == len(weights):
    raise UserError(
      "config.losses: expected a term whose weight is a number, beside those"
      f" that have a share of the gradient, {', '.join(shares)}; found none"
    )


def start(weights: Mapping[str, Weight]) -> dict[str, Norms]:
  """Returns the norms before the first measurement, of terms with a share."""
  return {
    name: Norms(jnp.zeros((), jnp.int32), jnp.zeros(()))
    for name, weight in weights.items()
    if isinstance(weight, Share)
  }


def measure(
  weights: Mapping[str, Weight],
  norms: Mapping[str, Norms],
  found: Mapping[str, Float[Array, ""]],
) -> dict[str, Norms]:
  """Takes in a measurement.

  Args:
    weights: of the terms, by name.
    norms: so far.
    found: norm of each term's gradient, at weight 1.
  """
  others = _sum(
    abs(weight) * found[name]
    for name, weight in weights.items()
    if not isinstance(weight, Share)
  )
  measured = {}
  for name, before in norms.items():
    weight = weights[name]
    assert isinstance(weight, Share)
    # Where all advantages are 0, say, a norm is 0 and says nothing.
    counts = (found[name] > 0) & (others > 0)
    counts &= jnp.isfinite(found[name]) & jnp.isfinite(others)
    rate = jnp.where(counts, 1 / jnp.minimum(before.count + 1, weight.over), 0)
    own = jnp.log(jnp.where(counts, found[name], 1.0))
    ratio = jnp.log(jnp.where(counts, others, 1.0)) - own
    measured[name] = Norms(
      before.count + counts, before.ratio + rate * (ratio - before.ratio)
    )
  return measured


def current(
  weights: Mapping[str, Weight], norms: Mapping[str, Norms]
) -> dict[str, Float[Array, ""] | float]:
  """Returns the weight of each term, as a number."""
  rest = 1 - sum(w.share for w in weights.values() if isinstance(w, Share))

  def one(name: str, weight: Weight):
    if not isinstance(weight, Share):
      return weight
    known = norms[name]
    value = weight.share / rest * jnp.exp(known.ratio)
    return jnp.where(known.count > 0, jnp.minimum(value, weight.most), 0.0)

  return {name: one(name, weight) for name, weight in weights.items()}


def _sum(values: Iterable[Array]) -> Array:
  return sum(values, start=jnp.zeros(()))
