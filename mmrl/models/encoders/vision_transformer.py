"""Vision transformers as pure functions: SigLIP, SigLIP 2, DINOv2, DINOv3."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mmrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hyper-parameters of an encoder; names follow its config.json.

  Attributes:
    kind: "siglip", "dinov2" or "dinov3".
    mean, deviation: of colours, by which pictures are normalised.
    gated: "" or how a gated MLP's first layers are stored: "joint" or "apart".
    registers: number of tokens between CLS and patches.
    rope_theta: of rotary positions, which patches have instead of learned ones;
      0 is none.
  """

  kind: str
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  image_size: int
  patch_size: int
  layer_norm_eps: float
  hidden_act: str
  mean: tuple[float, ...]
  deviation: tuple[float, ...]
  gated: str = ""
  registers: int = 0
  rope_theta: float = 0.0


_ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "silu": jax.nn.silu,
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
ACTIVATIONS = (*_ACTIVATIONS,)


def features(
  params: PyTree, settings: Settings, images: Float[Array, "n H W 3"]
) -> Float[Array, "n patches C"]:
  """Computes the last layer's normalised features of patches, rows first.

  They equal Transformers' `last_hidden_state` without CLS and registers.
  Learned positions are resized, bicubically, to pictures of another size.

  Args:
    params: tensors by their Hugging Face names, of layers stacked.
    settings: of the encoder.
    images: normalised. Pixels beyond whole patches are cut off.
  """
  size = settings.patch_size
  rows, columns = images.shape[1] // size, images.shape[2] // size
  x = images[:, : rows * size, : columns * size]
  x = x.reshape(-1, rows, size, columns, size, 3).transpose(0, 1, 3, 5, 2, 4)
  kernel = params["patch"]["weight"]
  x = (
    x.reshape(len(images), rows * columns, -1)
    @ kernel.reshape(len(kernel), -1).T
  )
  x = x + params["patch"]["bias"][None, None]
  grid = params.get("positions")
  first, angles = params.get("first"), None
  if settings.rope_theta:
    angles = _angles(settings, rows, columns)
  elif first is None:
    x = x + _resized(grid, rows, columns)[None]
  else:
    first = jnp.concatenate([first[:1] + grid[:1], first[1:]])
    antialias = settings.registers > 0
    x = x + _resized(grid[1:], rows, columns, antialias)[None]
  count = 0 if first is None else len(first)
  if first is not None:
    first = jnp.broadcast_to(first[None], (len(x), *first.shape))
    x = jnp.concatenate([first, x], axis=1)

  def layer(x, own):
    return _block(x, own, settings, angles), None

  x, _ = jax.lax.scan(layer, x, params["layers"])
  return _norm(x, params["norm"], settings)[:, count:]


def _angles(
  settings: Settings, rows: int, columns: int
) -> Float[Array, "patches head"]:
  """Returns rotary angles of patches, from their places in [-1, 1]."""
  size = settings.hidden_size // settings.num_attention_heads
  frequencies = settings.rope_theta ** -np.arange(0, 1, 4 / size)
  axes = np.meshgrid(
    *(2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)), indexing="ij"
  )
  places = np.stack(axes, axis=-1).reshape(-1, 2, 1)
  angles = 2 * np.pi * places * frequencies
  return jnp.asarray(np.tile(angles.reshape(len(places), -1), 2), jnp.float32)


def _rotate(x: Array, angles: Float[Array, "patches head"]) -> Array:
  """Rotates the last positions of [n, T, heads, head], which are patches."""
  first, patches = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
  one, other = jnp.split(patches, 2, axis=-1)
  turned = jnp.concatenate([-other, one], axis=-1)
  cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
  return jnp.concatenate([first, patches * cos + turned * sin], axis=1)


def _block(
  x: Array, own: PyTree, settings: Settings, angles: Array | None
) -> Array:
  one = jnp.ones_like(own["norm1"]["weight"])
  scales = [own.get(f"scale{i}", one)[None, None] for i in (1, 2)]
  h = _norm(x, own["norm1"], settings)
  heads = settings.num_attention_heads

  def split(name):
    y = _dense(h, own[name])
    return y.reshape(*y.shape[:-1], heads, -1)

  q, k, v = map(split, ("query", "key", "value"))
  if angles is not None:
    q, k = _rotate(q, angles), _rotate(k, angles)
  scores = jnp.einsum("nthd,nuhd->nhtu", q, k) * q.shape[-1] ** -0.5
  out = jnp.einsum("nhtu,nuhd->nthd", jax.nn.softmax(scores), v)
  x = x + scales[0] * _dense(out.reshape(x.shape), own["output"])
  h = _norm(x, own["norm2"], settings)
  act = _ACTIVATIONS[settings.hidden_act]
  if settings.gated == "joint":
    gate, other = jnp.split(_dense(h, own["fc1"]), 2, axis=-1)
    h = jax.nn.silu(gate) * other
  elif settings.gated:
    h = act(_dense(h, own["gate"])) * _dense(h, own["fc1"])
  else:
    h = act(_dense(h, own["fc1"]))
  return x + scales[1] * _dense(h, own["fc2"])


def _dense(x: Array, own: PyTree) -> Array:
  return x @ own["weight"].T + own["bias"][None, None]


def _norm(x: Array, own: PyTree, settings: Settings) -> Array:
  x = x - x.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(
    (x * x).mean(-1, keepdims=True) + settings.layer_norm_eps
  )
  return x * scale * own["weight"][None, None] + own["bias"][None, None]


def _resized(
  grid: Array, rows: int, columns: int, antialias: bool = False
) -> Array:
  """Resizes a square grid of positions, as torch's bicubic `interpolate`.

  Torch's antialiasing, which DINOv2 with registers has, is another cubic.
  """
  side = round(len(grid) ** 0.5)
  if (rows, columns) == (side, side):
    return grid
  grid = grid.reshape(side, side, -1)
  if antialias:
    shape = rows, columns, grid.shape[-1]
    return jax.image.resize(grid, shape, "cubic").reshape(rows * columns, -1)
  out = jnp.einsum(
    "yr,xc,rcd->yxd", _cubic(side, rows), _cubic(side, columns), grid
  )
  return out.reshape(rows * columns, -1)


def _cubic(side: int, size: int) -> Array:
  """Returns the weights [size, side] of bicubic resizing along one axis.

  Half-pixel centres, a = -0.75, edges clamped, without antialiasing.
  """
  a = -0.75
  at = (np.arange(size) + 0.5) * side / size - 0.5
  low = np.floor(at).astype(int)
  out = np.zeros((size, side))
  for offset in range(-1, 3):
    t = np.abs(at - low - offset)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    index = np.clip(low + offset, 0, side - 1)
    np.add.at(out, (np.arange(size), index), np.where(t <= 1, near, far))
  return jnp.asarray(out, jnp.float32)
