"""The only place that knows masks and devices: terms to one number.

A reduction is a weight for every answer token, made from the mask alone:

    loss = sum_{p,g,r} weight[p,g,r] * term[p,g,r]

The weights of a minibatch are made once, with denominators over the whole
minibatch on all devices, and then sliced: gradient accumulation and sharding
sum parts and can't average averages, which is wrong where lengths differ.
Answers without a valid token count in no denominator; a minibatch without any
gives 0.

Names in other libraries: `token_mean` is verl's token-mean, `sequence_mean`
its seq-mean-token-mean, `sequence_sum` its seq-mean-token-sum.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _total(values: Array, axis_name: str | None) -> Array:
  total = values.sum()
  return jax.lax.psum(total, axis_name) if axis_name else total


def _divide(values: Array, count: Array) -> Array:
  return values / jnp.maximum(count, 1.0)


def token_mean(
  mask: Bool[Array, "P G R"], *, axis_name: str | None = None
) -> Float[Array, "P G R"]:
  """Every token of the minibatch weighs the same: `mask / sum(mask)`."""
  mask = mask.astype(jnp.float32)
  return _divide(mask, _total(mask, axis_name))


def sequence_mean(
  mask: Bool[Array, "P G R"], *, axis_name: str | None = None
) -> Float[Array, "P G R"]:
  """Mean over the tokens of each answer, then mean over answers."""
  mask = mask.astype(jnp.float32)
  lengths = mask.sum(-1, keepdims=True)
  answers = _total((lengths > 0).astype(jnp.float32), axis_name)
  return _divide(_divide(mask, lengths), answers)


def sequence_sum(
  mask: Bool[Array, "P G R"], *, axis_name: str | None = None
) -> Float[Array, "P G R"]:
  """Sum over the tokens of each answer, then mean over answers."""
  mask = mask.astype(jnp.float32)
  answers = _total((mask.sum(-1) > 0).astype(jnp.float32), axis_name)
  return _divide(mask, answers)


def total(
  values: Float[Array, "P G R"],
  weights: Float[Array, "P G R"],
  *,
  axis_name: str | None = None,
) -> Float[Array, ""]:
  """Weighted sum over tokens and devices.

  Where the weight is 0 the value is replaced before the product, so that
  whatever padding holds reaches neither the sum nor the gradient.
  """
  values = jnp.where(weights > 0, values, 0.0)
  return _total(values * weights, axis_name)
