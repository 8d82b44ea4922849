"""Layers of the U-Net as functions of parameters, pictures in channels-last.

A layer asks for its parameters by name and shape, `p(name, shape)`: with
`taken` from parameters that there are, with `made` new ones. Names are those of
diffusers' PyTorch classes, so that a state dict of theirs differs in the order
of axes alone: a kernel is [height, width, in, out] here, or [in, out].
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Gives the parameter of a name, in a shape.
Ask = Callable[[str, tuple[int, ...]], Array]
# Is given "self" or "cross", the name of an attention and what computes it.
Attend = Callable[[str, str, Callable[[], Array]], Array]
# Sides and channels differ between what a function is given.
Picture = Float[Array, "B _h _w _c"]
Tokens = Float[Array, "B _n _c"]


def taken(params: dict[str, Array]) -> Ask:
  """Returns what looks parameters up."""

  def ask(name: str, shape: tuple[int, ...]) -> Array:
    found = params[name]
    assert found.shape == shape, (name, found.shape, shape)
    return found

  return ask


def made(key: Array, params: dict[str, Array]) -> Ask:
  """Returns what draws parameters, and adds them to `params`.

  Kernels are normal with the inverse of the inputs as variance, biases 0,
  scales of norms 1.
  """

  def ask(name: str, shape: tuple[int, ...]) -> Array:
    if name.endswith("bias"):
      value = jnp.zeros(shape)
    elif len(shape) == 1:
      value = jnp.ones(shape)
    else:
      place = jax.random.fold_in(key, len(params))
      value = jax.random.normal(place, shape) / math.sqrt(math.prod(shape[:-1]))
    return params.setdefault(name, value)

  return ask


def computed(kind: str, name: str, compute: Callable[[], Array]) -> Array:
  """Computes an attention, as where nothing is cached (an `Attend`)."""
  del kind, name
  return compute()


def conv(
  p: Ask, name: str, x: Picture, width: int, *, side: int = 3, stride: int = 1
) -> Picture:
  """Convolves; zeros stand around the picture, as many on both sides.

  As one matrix product of what each pixel's neighbours are: XLA's gradient of
  a convolution takes the CPU several times as long.
  """
  inputs, edge = x.shape[-1], side // 2
  kernel = p(f"{name}.weight", (side, side, inputs, width))
  if side > 1:
    padded = jnp.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    high, wide = x.shape[1:3]
    x = jnp.concatenate(
      [
        padded[:, i : i + high : stride, j : j + wide : stride]
        for i in range(side)
        for j in range(side)
      ],
      axis=-1,
    )
  y = x @ kernel.reshape(-1, width)
  return y + _wide(p(f"{name}.bias", (width,)), y)


def dense(p: Ask, name: str, x: Any, width: int, *, bias: bool = True) -> Any:
  """Computes `x @ kernel`, and adds a bias unless told not to."""
  y = x @ p(f"{name}.weight", (x.shape[-1], width))
  return y + _wide(p(f"{name}.bias", (width,)), y) if bias else y


def group_norm(
  p: Ask, name: str, x: Picture, groups: int, epsilon: float
) -> Picture:
  """Normalises groups of channels over the whole picture."""
  batch, high, wide, width = x.shape
  parts = x.reshape(batch, high * wide, groups, width // groups)
  parts = _normalised(parts, (1, 3), epsilon)
  return _scaled(p, name, parts.reshape(x.shape))


def layer_norm(p: Ask, name: str, x: Tokens) -> Tokens:
  """Normalises each token."""
  return _scaled(p, name, _normalised(x, (-1,), 1e-5))


def _normalised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
  x = x - x.mean(axes, keepdims=True)
  return x * jax.lax.rsqrt((x * x).mean(axes, keepdims=True) + epsilon)


def _scaled(p: Ask, name: str, x: Array) -> Array:
  scale, bias = (p(f"{name}.{k}", x.shape[-1:]) for k in ("weight", "bias"))
  return x * _wide(scale, x) + _wide(bias, x)


def _wide(vector: Array, x: Array) -> Array:
  return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def attention(p: Ask, name: str, x: Tokens, of: Tokens, heads: int) -> Tokens:
  """Attends from `x` to `of`, with the projection of the output."""
  width = x.shape[-1]
  q, k, v = (
    dense(p, f"{name}.to_{part}", y, width, bias=False).reshape(
      *y.shape[:2], heads, -1
    )
    for part, y in (("q", x), ("k", of), ("v", of))
  )
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
  y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
  return dense(p, f"{name}.to_out.0", y.reshape(x.shape), width)


def residual(
  p: Ask, name: str, x: Picture, time: Float[Array, "B _t"], width: int, groups
) -> Picture:
  """Adds two convolutions, the second of which knows the time."""
  y = jax.nn.silu(group_norm(p, f"{name}.norm1", x, groups, 1e-5))
  y = conv(p, f"{name}.conv1", y, width)
  step = dense(p, f"{name}.time_emb_proj", jax.nn.silu(time), width)
  y = y + step[:, None, None]
  y = jax.nn.silu(group_norm(p, f"{name}.norm2", y, groups, 1e-5))
  y = conv(p, f"{name}.conv2", y, width)
  if x.shape[-1] != width:
    x = conv(p, f"{name}.conv_shortcut", x, width, side=1)
  return x + y


def transformer(
  p: Ask,
  name: str,
  x: Picture,
  prompt: Tokens | None,
  attend: Attend,
  heads: int,
  groups: int,
) -> Picture:
  """Adds self-attention, cross-attention to a prompt, and a gated MLP.

  Args:
    p: parameters.
    name: of the layer.
    x: the picture.
    prompt: embeddings of its words; None where `attend` has what they give.
    attend: gives the outputs of the attentions, each behind its projection.
    heads: of an attention.
    groups: of the norm before it.
  """
  width = x.shape[-1]
  y = group_norm(p, f"{name}.norm", x, groups, 1e-6)
  y = conv(p, f"{name}.proj_in", y, width, side=1)
  y = y.reshape(x.shape[0], -1, width)
  block = f"{name}.transformer_blocks.0"

  def to_itself() -> Tokens:
    of = layer_norm(p, f"{block}.norm1", y)
    return attention(p, f"{block}.attn1", of, of, heads)

  y = y + attend("self", f"{block}.attn1", to_itself)

  def to_prompt() -> Tokens:
    assert prompt is not None
    return attention(
      p, f"{block}.attn2", layer_norm(p, f"{block}.norm2", y), prompt, heads
    )

  y = y + attend("cross", f"{block}.attn2", to_prompt)
  of = layer_norm(p, f"{block}.norm3", y)
  inner, gate = jnp.split(
    dense(p, f"{block}.ff.net.0.proj", of, 8 * width), 2, axis=-1
  )
  # As torch has it, the exact GELU.
  inner = inner * jax.nn.gelu(gate, approximate=False)
  y = y + dense(p, f"{block}.ff.net.2", inner, width)
  y = y.reshape(x.shape)
  return x + conv(p, f"{name}.proj_out", y, width, side=1)
