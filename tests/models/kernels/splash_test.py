"""The TPU's kernel: interpreted, against dense attention; and compiled."""

import functools
import math

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import kernels
from kernels import G, H, P, R
import numpy as np
import pytest
import small_models

from mmrl.models.kernels import attention, splash
from mmrl.train import parallel


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
  """Three blocks of queries and three or four of keys."""
  monkeypatch.setattr(splash, "_BLOCK", 128)


def by_kernel(queries, keys, values):
  return splash.attend_causal(
    queries, keys, values, kernels.MASK, interpret=True
  )


def answers_by_kernel(
  queries, prefix_keys, prefix_values, keys, values, mask=kernels.MASK
):
  def joined(prefix, own):
    return jnp.concatenate([prefix, own.reshape(P, G * R, *own.shape[3:])], 1)

  out = splash.attend_answers(
    queries.reshape(P, G * R, H, kernels.HEAD),
    joined(prefix_keys, keys),
    joined(prefix_values, values),
    mask,
    answers=G,
    interpret=True,
  )
  return out.reshape(queries.shape)


CASES = kernels.cases(by_kernel, answers_by_kernel)


@pytest.mark.parametrize("kv_heads", small_models.first(2, 1))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, kv_heads):
  kernel, maps, make = CASES[case]
  found = kernels.check_value_and_gradient(
    kernel, maps, make(kv_heads), kernels.cotangent(case)
  )
  assert np.isfinite(found).all()


@pytest.mark.full
@pytest.mark.parametrize("case", small_models.first(*CASES))
def test_bfloat16(case):
  """Against float32: at most three units in the last place of the largest."""
  kernel, maps, make = CASES[case]
  arrays, slope = make(2, "bfloat16"), kernels.cotangent(case)
  found, found_grads = kernels.value_and_vjp(kernel, arrays, slope)
  assert found.dtype == jnp.bfloat16
  exact = [x.astype("float32") for x in arrays]
  slope = slope.astype("bfloat16").astype("float32")
  wanted, wanted_grads = kernels.value_and_vjp(maps, exact, slope)
  wanted = jnp.where(slope != 0, wanted, 0)
  found = jnp.where(slope != 0, found, 0)
  for one, other in zip(
    (found, *found_grads), (wanted, *wanted_grads), strict=True
  ):
    bound = 3 * 2**-8 * np.abs(other).max()
    np.testing.assert_allclose(one.astype("float32"), other, atol=bound)


def test_padding_has_no_influence():
  """Whatever it holds, and whatever is asked of it."""
  arrays, slope = kernels.causal_arrays(2), kernels.cotangent("causal")
  wanted, wanted_grads = kernels.value_and_vjp(by_kernel, arrays, slope)
  bad = ~kernels.MASK[..., None, None]
  arrays = [jnp.where(bad, 1e4, x) for x in arrays]
  slope = jnp.where(bad, 7.0, slope)
  found, found_grads = kernels.value_and_vjp(by_kernel, arrays, slope)
  for one, other in zip(
    (found, *found_grads), (wanted, *wanted_grads), strict=True
  ):
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one[kernels.MASK], other[kernels.MASK])


@pytest.mark.full
def test_answers_to_nothing():
  kernels.check_answers_to_nothing(answers_by_kernel)


@pytest.mark.parametrize("devices, share", small_models.first((3, 1), (8, 3)))
def test_prompts_are_shared_out(devices, share):
  """One on each of three devices; three don't go into eight, which have all."""
  kernels.check_sharing(by_kernel, kernels.causal_arrays(2), devices, share)


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
  topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
  chip = jax.sharding.SingleDeviceSharding(topology.devices[0])
  gradient, shapes = kernels.model_gradient(length, 4, 512, chip)
  return gradient.lower(*shapes).compile()


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
