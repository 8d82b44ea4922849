"""Flax linen modules: projections, norms, MLPs and blocks.

A block computes projections, norms and the MLP. Attention is a function passed
in (`attend`), so that prefill, extend and decode share one block.
`attend(queries, keys, values)` returns the attention output and whatever else
the caller wants kept.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.models.kernels import attention
from mmrl.types import PyTree

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


@jax.custom_vjp
def matmul(x: Float[Array, "*batch A"], kernel: Float[Array, "A B"]):
  """Computes `x @ kernel`; the kernel gradient is one plain matrix product.

  JAX's own rule computes the transposed gradient and transposes it back, which
  costs the CPU compiler a strided copy of every activation gradient: 1.8x on
  the backward pass of the MLP. Other backends compile both forms alike.
  """
  return jnp.matmul(x, kernel)


def _matmul_forward(x, kernel):
  return jnp.matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, dy):
  x, kernel = residuals
  dx = jnp.matmul(dy, kernel.T)
  x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
  return dx, jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def run(module: nn.Module, params: PyTree, *arguments: Any) -> Any:
  """Applies a module with given parameters."""
  return module.apply({"params": params}, *arguments)


# Parameters of an adapter, beside the kernel: A, B and the scale.
LORA = ("lora_a", "lora_b", "lora_scale")


class Dense(nn.Module):
  """`x @ kernel + bias`, in `dtype`, and the term of an adapter if it has one.

  The adapter (`models.Lora`) is in the parameters, so that a model without it
  is the same module given others.
  """

  width: int
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch A"]) -> Float[Array, "*batch B"]:
    shape = (x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    x = x.astype(self.dtype)
    y = matmul(x, kernel.astype(self.dtype))
    if self.has_variable("params", LORA[0]):
      a, b, scale = map(functools.partial(self.get_variable, "params"), LORA)
      # Scaled before it is rounded.
      low = matmul(x, (scale * a).astype(self.dtype))
      y = y + matmul(low, b.astype(self.dtype))
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.width,))
      y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
    return y


class RMSNorm(nn.Module):
  """`x / rms(x) * scale`, computed in float32."""

  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)
    return (x * jnp.broadcast_to(scale, x.shape)).astype(self.dtype)


class LayerNorm(nn.Module):
  """`(x - mean(x)) / std(x) * scale + bias`, computed in float32."""

  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)
    scale, bias = (jnp.broadcast_to(v, x.shape) for v in (scale, bias))
    return (x * scale + bias).astype(self.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
_VISION_NORMS = {"rms": RMSNorm, "layer": LayerNorm}
_VISION_EPSILON = 1e-6


def _vision_norm(config: VisionConfig, dtype: str, name: str) -> nn.Module:
  return _VISION_NORMS[config.norm](_VISION_EPSILON, dtype, name=name)


class MLP(nn.Module):
  """`fc2(activation(fc1(x)))`, with biases."""

  width: int
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    h = Dense(self.width, True, self.dtype, name="fc1")(x)
    h = ACTIVATIONS[self.activation](h)
    return Dense(x.shape[-1], True, self.dtype, name="fc2")(h)


class SwiGLU(nn.Module):
  """`down(silu(gate(x)) * up(x))`."""

  width: int
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    def dense(width, name):
      return Dense(width, self.use_bias, self.dtype, name=name)

    gated = jax.nn.silu(dense(self.width, "gate")(x))
    return dense(x.shape[-1], "down")(gated * dense(self.width, "up")(x))


class DecoderBlock(nn.Module):
  """Pre-norm grouped-query attention and SwiGLU."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "*batch D"],
    angles: Float[Array, "*batch half"],
    attend: Attend,
  ) -> tuple[Float[Array, "*batch D"], Any]:
    text, dtype = self.config.text, self.config.dtype

    def heads(x, count, name):
      width = count * text.head_dim
      x = Dense(width, text.qkv_bias, dtype, name=name)(x)
      return x.reshape(*x.shape[:-1], count, text.head_dim)

    def norm(x, name):
      return RMSNorm(text.rms_norm_eps, dtype, name=name)(x)

    h = norm(x, "input_norm")
    queries = heads(h, text.num_attention_heads, "q")
    keys = heads(h, text.num_key_value_heads, "k")
    values = heads(h, text.num_key_value_heads, "v")
    if text.qk_norm:
      queries, keys = norm(queries, "q_norm"), norm(keys, "k_norm")
    out, kept = attend(
      attention.rotate(queries, angles), attention.rotate(keys, angles), values
    )
    out = out.reshape(*out.shape[:-2], -1)
    x = x + Dense(text.hidden_size, False, dtype, name="o")(out)
    h = norm(x, "mlp_norm")
    x = x + SwiGLU(text.intermediate_size, False, dtype, name="mlp")(h)
    return x, kept


class VisionBlock(nn.Module):
  """Pre-norm attention over patches and an MLP, all with biases."""

  config: VisionConfig
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "*batch D"],
    angles: Float[Array, "*batch half"],
    attend: Attend,
  ) -> Float[Array, "*batch D"]:
    vision = self.config
    h = _vision_norm(vision, self.dtype, "norm1")(x)
    qkv = Dense(3 * vision.hidden_size, True, self.dtype, name="qkv")(h)
    qkv = qkv.reshape(*qkv.shape[:-1], 3, vision.num_heads, vision.head_dim)
    queries, keys, values = jnp.moveaxis(qkv, -3, 0)
    out, _ = attend(
      attention.rotate(queries, angles), attention.rotate(keys, angles), values
    )
    out = out.reshape(*out.shape[:-2], -1)
    x = x + Dense(vision.hidden_size, True, self.dtype, name="proj")(out)
    h = _vision_norm(vision, self.dtype, "norm2")(x)
    if vision.gated_mlp:
      mlp: nn.Module = SwiGLU(
        vision.intermediate_size, True, self.dtype, name="mlp"
      )
    else:
      width, activation = vision.intermediate_size, vision.hidden_act
      mlp = MLP(width, activation, self.dtype, name="mlp")
    return x + mlp(h)


class PatchMerger(nn.Module):
  """Projects each 2x2 block of patches to one visual token.

  Attributes:
    norm_merged: whether the norm spans the block (DeepStack's mergers)
      instead of each of its patches.
  """

  config: VisionConfig
  dtype: str
  norm_merged: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B M width"]) -> Float[Array, "B N D"]:
    merged = self.config.spatial_merge_size**2 * x.shape[-1]
    norm = _vision_norm(self.config, self.dtype, "norm")
    shape = (x.shape[0], -1, merged)
    x = norm(x.reshape(shape)) if self.norm_merged else norm(x).reshape(shape)
    x = Dense(merged, True, self.dtype, name="fc1")(x)
    x = jax.nn.gelu(x, approximate=False)
    width = self.config.out_hidden_size
    return Dense(width, True, self.dtype, name="fc2")(x)
