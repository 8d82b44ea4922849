"""The TPU's kernel: interpreted, against dense attention; and compiled."""

import dataclasses
import functools
import math

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models, parallel
from mmrl.models import attention, parameters, splash
from mmrl.types import Prompt

P, S, H, HEAD = 2, 300, 4, 16
G, R = 3, 50
# Padding on the left, on the right.
PLACE = np.arange(S)
MASK = jnp.asarray([PLACE >= 37, PLACE < 200])


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
  """Three blocks of queries and three or four of keys."""
  monkeypatch.setattr(splash, "_BLOCK", 128)


def normal(seed: int, *shape, dtype="float32"):
  return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


def causal_arrays(kv_heads: int, dtype="float32"):
  """Queries, keys, values."""
  return (
    2 * normal(0, P, S, H, HEAD, dtype=dtype),
    normal(1, P, S, kv_heads, HEAD, dtype=dtype),
    normal(2, P, S, kv_heads, HEAD, dtype=dtype),
  )


def by_kernel(queries, keys, values):
  return splash.attend_causal(queries, keys, values, MASK, interpret=True)


def by_maps(queries, keys, values):
  mask = attention.causal_mask(MASK)
  return attention.attend(queries, keys, values, mask)


def answer_arrays(kv_heads: int, dtype="float32"):
  """Queries, the prompt's keys and values, the answers' own."""
  return (
    2 * normal(0, P, G, R, H, HEAD, dtype=dtype),
    normal(1, P, S, kv_heads, HEAD, dtype=dtype),
    normal(2, P, S, kv_heads, HEAD, dtype=dtype),
    normal(3, P, G, R, kv_heads, HEAD, dtype=dtype),
    normal(4, P, G, R, kv_heads, HEAD, dtype=dtype),
  )


def answers_by_kernel(queries, prefix_keys, prefix_values, keys, values, *mask):
  def joined(prefix, own):
    return jnp.concatenate([prefix, own.reshape(P, G * R, *own.shape[3:])], 1)

  out = splash.attend_answers(
    queries.reshape(P, G * R, H, HEAD),
    joined(prefix_keys, keys),
    joined(prefix_values, values),
    *mask or (MASK,),
    answers=G,
    interpret=True,
  )
  return out.reshape(queries.shape)


def answers_by_maps(queries, prefix_keys, prefix_values, keys, values, *mask):
  """One answer at a time behind a copy of the prompt."""
  (mask,) = mask or (MASK,)
  own = jnp.broadcast_to(jnp.tri(R, dtype=bool), (P, R, R))
  prompt = jnp.broadcast_to(mask[:, None], (P, R, S))
  mask = jnp.concatenate([prompt, own], axis=-1)

  def one(queries, keys, values):
    keys = jnp.concatenate([prefix_keys, keys], axis=1)
    values = jnp.concatenate([prefix_values, values], axis=1)
    return attention.attend(queries, keys, values, mask)

  return jax.vmap(one, in_axes=1, out_axes=1)(queries, keys, values)


CASES = {
  "causal": (by_kernel, by_maps, causal_arrays),
  "answers": (answers_by_kernel, answers_by_maps, answer_arrays),
}


def cotangent(case: str):
  """None on padding, whose output means nothing."""
  if case == "answers":
    return normal(5, P, G, R, H, HEAD)
  return normal(5, P, S, H, HEAD) * MASK[..., None, None]


def value_and_vjp(function, arrays, cotangent):
  @jax.jit
  def run(*arrays):
    value, back = jax.vjp(function, *arrays)
    return value, back(cotangent.astype(value.dtype))

  return run(*arrays)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, kv_heads):
  kernel, maps, make = CASES[case]
  arrays, slope = make(kv_heads), cotangent(case)
  found, found_grads = value_and_vjp(kernel, arrays, slope)
  wanted, wanted_grads = value_and_vjp(maps, arrays, slope)
  real = np.broadcast_to(slope != 0, wanted.shape)
  np.testing.assert_allclose(found[real], wanted[real], atol=3e-6)
  assert np.isfinite(found).all()
  for one, other in zip(found_grads, wanted_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case):
  """Against float32: at most three units in the last place of the largest."""
  kernel, maps, make = CASES[case]
  arrays, slope = make(2, "bfloat16"), cotangent(case)
  found, found_grads = value_and_vjp(kernel, arrays, slope)
  assert found.dtype == jnp.bfloat16
  exact = [x.astype("float32") for x in arrays]
  slope = slope.astype("bfloat16").astype("float32")
  wanted, wanted_grads = value_and_vjp(maps, exact, slope)
  wanted = jnp.where(slope != 0, wanted, 0)
  found = jnp.where(slope != 0, found, 0)
  for one, other in zip(
    (found, *found_grads), (wanted, *wanted_grads), strict=True
  ):
    bound = 3 * 2**-8 * np.abs(other).max()
    np.testing.assert_allclose(one.astype("float32"), other, atol=bound)


def test_padding_has_no_influence():
  """Whatever it holds, and whatever is asked of it."""
  arrays, slope = causal_arrays(2), cotangent("causal")
  wanted, wanted_grads = value_and_vjp(by_kernel, arrays, slope)
  bad = ~MASK[..., None, None]
  arrays = [jnp.where(bad, 1e4, x) for x in arrays]
  slope = jnp.where(bad, 7.0, slope)
  found, found_grads = value_and_vjp(by_kernel, arrays, slope)
  for one, other in zip(
    (found, *found_grads), (wanted, *wanted_grads), strict=True
  ):
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one[MASK], other[MASK])


def test_answers_to_nothing():
  """Prompts without a real token: answers see themselves."""
  arrays, slope = answer_arrays(2), cotangent("answers")
  nothing = jnp.zeros((P, S), bool)
  found, found_grads = value_and_vjp(
    lambda *arrays: answers_by_kernel(*arrays, nothing), arrays, slope
  )
  wanted, wanted_grads = value_and_vjp(
    lambda *arrays: answers_by_maps(*arrays, nothing), arrays, slope
  )
  np.testing.assert_allclose(found, wanted, atol=3e-6)
  for one, other in zip(found_grads, wanted_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_prompts_are_shared_out(devices):
  """One on each of two devices; two don't go into eight, which have both."""
  mesh = parallel.data_mesh(jax.devices()[:devices])
  everywhere = jax.NamedSharding(mesh, jax.P())
  function = jax.jit(by_kernel, in_shardings=everywhere)
  wanted = jax.jit(by_kernel)(*causal_arrays(2))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    found = function(*causal_arrays(2))
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert found.sharding.shard_shape(found.shape)[0] == (
    1 if devices == 2 else 2
  )


def test_mask_of_answers():
  """A prompt of two, two answers of two, and padding behind each."""
  mask = splash.Answers(queries=6, keys=7, length=2, count=2)
  x, o = True, False
  wanted = [
    [x, x, x, o, o, o, o],
    [x, x, x, x, o, o, o],
    [x, x, o, o, x, o, o],
    [x, x, o, o, x, x, o],
  ]
  found = mask[slice(0, 6), slice(0, 7)]
  np.testing.assert_array_equal(found[:4], wanted)
  np.testing.assert_array_equal(
    mask[slice(2, 4), slice(4, 6)], [[x, o], [x, x]]
  )
  assert found.any(1).all()


@pytest.mark.parametrize(
  "count, sides",
  [(1, (128, 128)), (512, (512, 512)), (640, (384, 768)), (8192, (512, 8192))],
)
def test_sides(monkeypatch, count, sides):
  monkeypatch.undo()
  assert splash._sides(count) == sides


@pytest.fixture
def tpu_compiler(monkeypatch):
  """Skips without one. It ends the process at flags that it doesn't know."""
  pytest.importorskip("libtpu", reason="compiles for a TPU: extra `tpu`")
  jax.devices()  # The CPU has read its flags.
  monkeypatch.undo()
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  # No chip is used, so that another process may have it.
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


@functools.cache
def compile_for_tpu(length: int):
  """The gradient through `prefill` and `extend`, for one chip of a v5e."""
  config = small_models.small_config()
  text = dataclasses.replace(
    config.text, head_dim=128, mrope_section=(16, 24, 24)
  )
  config = dataclasses.replace(config, text=text, dtype="bfloat16")
  topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
  chip = jax.sharding.SingleDeviceSharding(topology.devices[0])

  def shape(*sizes, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=chip)

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
    output = models.extend(params, config, prefix, tokens)
    return output.hidden.astype(jnp.float32).sum()

  tokens = shape(1, 4, 512)
  return jax.jit(jax.grad(loss)).lower(params, prompt, visual, tokens).compile()


def test_the_tpu_program_holds_the_kernel(tpu_compiler):
  program = compile_for_tpu(2048).as_text()
  for kernel in ("fwd", "dq", "dkv"):
    assert f"splash_mha_{kernel}_segmented" in program
  assert "tpu_custom_call" in program


def test_the_tpu_program_of_a_mesh(tpu_compiler):
  """Each of four chips runs the kernel on its own prompt."""
  chips = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
  mesh = parallel.data_mesh(chips)
  spread = jax.NamedSharding(mesh, jax.P(parallel.AXIS))
  shapes = (4, 2048, H, 128), (4, 2048, 2, 128), (4, 2048, 2, 128), (4, 2048)

  def loss(queries, keys, values, mask):
    return attention.attend_causal(queries, keys, values, mask > 0).sum()

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = gradient.lower(
      *(
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread)
        for shape in shapes
      )
    ).compile()
  text = program.as_text()
  assert text.count("tpu_custom_call") == 3
  assert "all-gather" not in text


def test_memory_on_a_tpu_is_linear(tpu_compiler):
  """A map of 4,096 tokens would take 64 MiB a head in float32."""
  small, large = (
    compile_for_tpu(length).memory_analysis().temp_size_in_bytes
    for length in (2048, 4096)
  )
  assert large < 2.2 * small
  assert large < math.prod((4096, 4096, 4))
