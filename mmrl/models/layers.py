"""Flax linen leaves of the Qwen2.5-VL architecture.

A block computes projections, norms and the MLP; *how* its queries meet keys is
a function handed in (`attend`), so that prefill, extend and decode are the
same block. `attend(queries, keys, values)` returns the attention output and
whatever else the caller wants kept.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.models import attention
from mmrl.models.config import ModelConfig, VisionConfig

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


@jax.custom_vjp
def matmul(x: Float[Array, "*batch A"], kernel: Float[Array, "A B"]):
  """`x @ kernel`, whose kernel gradient is one plain matrix product.

  JAX's own rule makes the transposed gradient and transposes it back, which
  costs the CPU compiler a strided copy of every activation gradient: 1.8x on
  the backward pass of the MLP. Other backends compile both forms alike.
  """
  return jnp.matmul(x, kernel)


def _matmul_forward(x, kernel):
  return jnp.matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, dy):
  x, kernel = residuals
  dx = jnp.matmul(dy, kernel.T)
  flat = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
  return dx, jax.lax.dot_general(*flat, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
  """`x @ kernel + bias`, in `dtype`."""

  width: int
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*batch A"]) -> Float[Array, "*batch B"]:
    shape = (x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.width,))
      y = y + bias.astype(self.dtype)
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
    return (x * scale).astype(self.dtype)


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
  """Pre-norm grouped-query attention and SwiGLU, with q/k/v biases."""

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
      x = Dense(count * text.head_dim, True, dtype, name=name)(x)
      return x.reshape(*x.shape[:-1], count, text.head_dim)

    h = RMSNorm(text.rms_norm_eps, dtype, name="input_norm")(x)
    queries = heads(h, text.num_attention_heads, "q")
    keys = heads(h, text.num_key_value_heads, "k")
    values = heads(h, text.num_key_value_heads, "v")
    out, kept = attend(
      attention.rotate(queries, angles), attention.rotate(keys, angles), values
    )
    out = out.reshape(*out.shape[:-2], -1)
    x = x + Dense(text.hidden_size, False, dtype, name="o")(out)
    h = RMSNorm(text.rms_norm_eps, dtype, name="mlp_norm")(x)
    x = x + SwiGLU(text.intermediate_size, False, dtype, name="mlp")(h)
    return x, kept


class VisionBlock(nn.Module):
  """Pre-norm attention over patches and SwiGLU, all with biases."""

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
    h = RMSNorm(1e-6, self.dtype, name="norm1")(x)
    qkv = Dense(3 * vision.hidden_size, True, self.dtype, name="qkv")(h)
    qkv = qkv.reshape(*qkv.shape[:-1], 3, vision.num_heads, vision.head_dim)
    queries, keys, values = jnp.moveaxis(qkv, -3, 0)
    out, _ = attend(
      attention.rotate(queries, angles), attention.rotate(keys, angles), values
    )
    out = out.reshape(*out.shape[:-2], -1)
    x = x + Dense(vision.hidden_size, True, self.dtype, name="proj")(out)
    h = RMSNorm(1e-6, self.dtype, name="norm2")(x)
    return x + SwiGLU(vision.intermediate_size, True, self.dtype, name="mlp")(h)


class PatchMerger(nn.Module):
  """Projects each 2x2 block of patches to one visual token."""

  config: VisionConfig
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "P M width"]) -> Float[Array, "P N D"]:
    unit = self.config.spatial_merge_size**2
    x = RMSNorm(1e-6, self.dtype, name="norm")(x)
    x = x.reshape(x.shape[0], -1, unit * x.shape[-1])
    x = Dense(x.shape[-1], True, self.dtype, name="fc1")(x)
    x = jax.nn.gelu(x, approximate=False)
    width = self.config.out_hidden_size
    return Dense(width, True, self.dtype, name="fc2")(x)
