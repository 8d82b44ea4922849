"""What attention kernels are tested with, and against."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import small_models

from mmrl import models
from mmrl.models import parameters
from mmrl.models.kernels import attention
from mmrl.train import parallel
from mmrl.types import Prompt

P, S, H, HEAD = 3, 300, 4, 16
G, R = 3, 51
# Padding on the left, on the right, on both sides.
PLACE = np.arange(S)
MASK = jnp.asarray([PLACE >= 37, PLACE < 200, (PLACE > 4) & (PLACE < 290)])


def normal(seed: int, *shape, dtype="float32"):
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


def causal_arrays(kv_heads: int, dtype="float32"):
  """Queries, keys, values."""
  return (
    2 * normal(0, P, S, H, HEAD, dtype=dtype),
    normal(1, P, S, kv_heads, HEAD, dtype=dtype),
    normal(2, P, S, kv_heads, HEAD, dtype=dtype),
  )


def answer_arrays(kv_heads: int, dtype="float32"):
  """Queries, the prompt's keys and values, the answers' own."""
  return (
    2 * normal(0, P, G, R, H, HEAD, dtype=dtype),
    normal(1, P, S, kv_heads, HEAD, dtype=dtype),
    normal(2, P, S, kv_heads, HEAD, dtype=dtype),
    normal(3, P, G, R, kv_heads, HEAD, dtype=dtype),
    normal(4, P, G, R, kv_heads, HEAD, dtype=dtype),
  )


def by_maps(queries, keys, values):
  """Causal attention by whole maps."""
  mask = attention.causal_mask(MASK)
  return attention.attend(queries, keys, values, mask)


def answers_by_maps(
  queries, prefix_keys, prefix_values, keys, values, mask=MASK
):
  """One answer at a time behind a copy of the prompt."""
  own = jnp.broadcast_to(jnp.tri(R, dtype=bool), (P, R, R))
  prompt = jnp.broadcast_to(mask[:, None], (P, R, S))
  mask = jnp.concatenate([prompt, own], axis=-1)

  def one(queries, keys, values):
    keys = jnp.concatenate([prefix_keys, keys], axis=1)
    values = jnp.concatenate([prefix_values, values], axis=1)
    return attention.attend(queries, keys, values, mask)

  return jax.vmap(one, in_axes=1, out_axes=1)(queries, keys, values)


def cotangent(case: str):
  """None on padding, whose output means nothing."""
  if case == "answers":
    return normal(5, P, G, R, H, HEAD)
  return normal(5, P, S, H, HEAD) * MASK[..., None, None]


def value_and_vjp(function, arrays, cotangent):
  return _program(function)(cotangent, *arrays)


@functools.cache
def _program(function):
  """One for all arrays of a shape."""

  @jax.jit
  def run(cotangent, *arrays):
    value, back = jax.vjp(function, *arrays)
    return value, back(cotangent.astype(value.dtype))

  return run


def check_value_and_gradient(kernel, maps, arrays, slope):
  """Checks a kernel against whole maps, off the padding.

  Returns:
    The kernel's values.
  """
  found, found_grads = value_and_vjp(kernel, arrays, slope)
  wanted, wanted_grads = value_and_vjp(maps, arrays, slope)
  real = np.broadcast_to(slope != 0, wanted.shape)
  np.testing.assert_allclose(found[real], wanted[real], atol=3e-6)
  for one, other in zip(found_grads, wanted_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)
  return found


def check_answers_to_nothing(kernel):
  """Prompts without a real token: answers see themselves."""
  nothing = {"mask": jnp.zeros((P, S), bool)}
  check_value_and_gradient(
    functools.partial(kernel, **nothing),
    functools.partial(answers_by_maps, **nothing),
    answer_arrays(2),
    cotangent("answers"),
  )


def cases(causal, answers) -> dict:
  """Of a kernel: its two functions, whole maps, and what makes the arrays."""
  return {
    "causal": (causal, by_maps, causal_arrays),
    "answers": (answers, answers_by_maps, answer_arrays),
  }


def check_sharing(kernel, arrays, devices: int, share: int):
  """Checks that each of so many devices computes `share` of the prompts."""
  wanted = jax.jit(kernel)(*arrays)
  mesh = parallel.data_mesh(jax.devices()[:devices])
  everywhere = jax.NamedSharding(mesh, jax.P())
  function = jax.jit(kernel, in_shardings=everywhere)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    found = function(*arrays)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert found.sharding.shard_shape(found.shape)[0] == share


def model_gradient(length: int, answers: int, count: int, sharding=None):
  """The gradient through `prefill` and `extend`, in bfloat16 and heads of 128.

  Returns:
    (jitted function, shapes of its arguments).
  """
  config = small_models.small_config()
  text = dataclasses.replace(
    config.text, head_dim=128, mrope_section=(16, 24, 24)
  )
  config = dataclasses.replace(config, text=text, dtype="bfloat16")

  def shape(*sizes, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

  params = jax.tree.map(
    lambda x: shape(*x.shape, dtype=x.dtype), parameters.shapes(config)
  )
  prompt = Prompt(
    tokens=shape(1, length),
    mask=shape(1, length, dtype=bool),
    positions=shape(1, length, 3),
    visual_index=shape(1, length),
    next_position=shape(1),
    region=shape(1, length, dtype=jnp.float32),
    patches=None,
  )
  visual = shape(1, 64, text.hidden_size, dtype=jnp.float32)

  def loss(params, prompt, visual, tokens):
    prefix = models.prefill(params, config, prompt, visual)
    output = models.extend(
      params, config, prefix, models.embed(params, config, tokens)
    )
    return output.hidden.astype(jnp.float32).sum()

  tokens = shape(1, answers, count)
  return jax.jit(jax.grad(loss)), (params, prompt, visual, tokens)
