"""NVIDIA's kernels: their reference against dense attention; and lowered."""

import re
import types

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import kernels
from kernels import H
import numpy as np
import pytest
import small_models

from mmrl.models.kernels import attention, cudnn
from mmrl.train import parallel

CALL = re.compile(r"custom_call @__cudnn\$fmha(\w+)\(")


def by_reference(queries, keys, values):
  return cudnn.attend_causal(
    queries, keys, values, kernels.MASK, implementation="xla"
  )


def answers_by_reference(queries, keys, values, *own, mask=kernels.MASK):
  return cudnn.attend_answers(
    queries, keys, values, mask, *own, implementation="xla"
  )


CASES = kernels.cases(by_reference, answers_by_reference)


@pytest.mark.parametrize("kv_heads", small_models.first(2, 1))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, kv_heads):
  reference, maps, make = CASES[case]
  kernels.check_value_and_gradient(
    reference, maps, make(kv_heads), kernels.cotangent(case)
  )


@pytest.mark.parametrize("case", CASES)
def test_padding_has_no_influence(case):
  """Whatever it holds, NaN included, and whatever is asked of it."""
  reference, _, make = CASES[case]
  arrays, slope = make(2), kernels.cotangent(case)
  wanted, wanted_grads = kernels.value_and_vjp(reference, arrays, slope)
  bad = ~kernels.MASK[..., None, None]
  if case == "causal":
    slope = jnp.where(bad, 7.0, slope)
  arrays = [jnp.where(bad, jnp.nan, x) if x.ndim == 4 else x for x in arrays]
  found, found_grads = kernels.value_and_vjp(reference, arrays, slope)
  for one, other in zip(
    (found, *found_grads), (wanted, *wanted_grads), strict=True
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.full
def test_answers_to_nothing():
  kernels.check_answers_to_nothing(answers_by_reference)


@pytest.mark.parametrize("devices, share", small_models.first((3, 1), (2, 3)))
@pytest.mark.parametrize("case", CASES)
def test_prompts_are_shared_out(case, devices, share):
  """One on each of three devices; three don't go into two, which have all."""
  reference, _, make = CASES[case]
  kernels.check_sharing(reference, make(2), devices, share)


def set_version(monkeypatch, version: int | None):
  """What JAX asks of cuDNN before it writes a call; none is installed."""
  versions = version and types.SimpleNamespace(
    cudnn_get_version=lambda: version
  )
  monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)


@pytest.fixture
def cudnn_is_here(monkeypatch):
  set_version(monkeypatch, 91000)


def test_takes(monkeypatch):
  def takes(size, dtype):
    return cudnn.takes(jnp.zeros((1, 1, 1, size), dtype))

  set_version(monkeypatch, None)
  assert not takes(128, jnp.bfloat16)
  set_version(monkeypatch, 91000)
  assert takes(128, jnp.bfloat16) and takes(80, jnp.float16)
  assert not takes(128, jnp.float32)
  assert not takes(12, jnp.bfloat16)
  assert not takes(256, jnp.bfloat16)
  gpu = types.SimpleNamespace(platform="gpu", compute_capability="7.5")
  monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
  assert not takes(128, jnp.bfloat16)
  gpu.compute_capability = "10.0"
  assert takes(128, jnp.bfloat16)


@pytest.mark.full
def test_the_program_of_the_model(cudnn_is_here):
  """The gradient through `prefill` and `extend`."""
  gradient, shapes = kernels.model_gradient(2000, answers=4, count=500)
  traced = gradient.trace(*shapes)
  program = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert set(CALL.findall(program)) == {
    "Softmax",
    "SoftmaxBackward",
    "ScaleBiasSoftmax",
    "ScaleBiasSoftmaxBackward",
  }
  for line in program.splitlines():
    if call := CALL.search(line):
      answers = "ScaleBias" in call[1]
      assert ("PADDING_CAUSAL" in line) != answers
      # One mask for all answers, 500 by 2,500 in tiles of 128.
      assert ("tensor<1x1x512x2560xbf16>" in line) == answers


def lower_causal(dtype: str, platform: str, sharding=None) -> str:
  """The gradient of four prompts' attention."""

  def loss(queries, keys, values, mask):
    out = attention.attend_causal(queries, keys, values, mask > 0)
    return out.astype(jnp.float32).sum()

  shapes = (4, 2048, H, 128), (4, 2048, 2, 128), (4, 2048, 2, 128), (4, 2048)
  traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
    *(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes)
  )
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_programs_without_the_kernels(cudnn_is_here, monkeypatch):
  """Of other types, for other machines, and where cuDNN isn't installed."""
  assert CALL.search(lower_causal("float16", "cuda"))
  assert not CALL.search(lower_causal("float32", "cuda"))
  assert not CALL.search(lower_causal("bfloat16", "cpu"))
  set_version(monkeypatch, None)
  assert not CALL.search(lower_causal("bfloat16", "cuda"))


@pytest.mark.full
def test_the_program_of_a_mesh(cudnn_is_here):
  """Each of four devices calls the kernel for its own prompt."""
  mesh = parallel.data_mesh(jax.devices()[:4])
  spread = jax.NamedSharding(mesh, jax.P(parallel.AXIS))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    program = lower_causal("bfloat16", "cuda", spread)
  lines = [line for line in program.splitlines() if CALL.search(line)]
  assert len(lines) == 2
  for line in lines:
    assert f"(tensor<1x2048x{H}x128xbf16>" in line
  assert "CustomSPMDPartitioning" not in program
