"""A U-Net with a control branch, whose blocks can be computed alone.

The U-Net is that of Stable Diffusion and the branch ControlNet's (arXiv
2302.05543), small, and on pixels: the encoder's blocks give features to the
decoder's; the branch is a second encoder that also sees the condition, and
whose features are added to them through convolutions that are 0 at first.
diffusers' `UNet2DConditionModel` and `ControlNetModel` compute the same.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.diffusion.network import layers
from mmrl.diffusion.network.layers import Ask, Attend, Picture, Tokens
from mmrl.errors import UserError

Params = dict[str, dict[str, Array]]
# Is given the name of a part of the model and what computes it.
Part = Callable[[str, Callable[[Attend], Any]], Any]
# Ratio of the frequencies in which times are embedded.
_SLOWEST = 10000.0
_COLOURS = 3


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Sizes of the model.

  Attributes:
    size: side of a picture in pixels.
    patch: side of the squares of pixels that the U-Net sees as one place with
      more channels, as Stable Diffusion sees a picture's latents.
    channels: of each level; each but the last halves the side.
    attention: whether a level attends.
    layers: of a block of the encoder; the decoder's have one more.
    heads: of an attention.
    groups: of a norm.
    words: number of words that a prompt may have, with that of none.
    text_width: channels of a word.
    condition_width: channels of the condition before the branch's own.
  """

  size: int = 16
  patch: int = 2
  channels: tuple[int, ...] = (32, 64)
  attention: tuple[bool, ...] = (False, True)
  layers: int = 1
  heads: int = 4
  groups: int = 8
  words: int = 11
  text_width: int = 32
  condition_width: int = 16

  def __post_init__(self):
    sides = self.patch * 2 ** (len(self.channels) - 1)
    for name in (
      "size",
      "patch",
      "layers",
      "heads",
      "groups",
      "words",
      "text_width",
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f"model.{name}: expected a whole number from 1 on, found"
          f" {getattr(self, name)}"
        )
    if not self.channels or len(self.attention) != len(self.channels):
      raise UserError(
        "model.attention: expected True or False for each of the"
        f" {len(self.channels)} levels of model.channels, found"
        f" {len(self.attention)} of them"
      )
    if self.size % sides:
      raise UserError(
        f"model.size: expected a multiple of {sides}, the pixels of the"
        f" smallest of {len(self.channels)} levels, found {self.size}"
      )
    for width in self.channels:
      if width < 1 or width % self.groups or width % self.heads:
        raise UserError(
          f"model.channels: expected multiples of {self.groups} groups and of"
          f" {self.heads} heads, found {width}"
        )

  @property
  def encoder_blocks(self) -> int:
    """Number of the encoder's blocks: one a level, and the middle."""
    return len(self.channels) + 1

  @property
  def decoder_blocks(self) -> int:
    """Number of the decoder's blocks: one a level."""
    return len(self.channels)


def folded(x: Picture, patch: int) -> Picture:
  """Makes channels of the pixels of a square."""
  batch, high, wide, width = x.shape
  x = x.reshape(batch, high // patch, patch, wide // patch, patch, width)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, high // patch, wide // patch, -1)


def unfolded(x: Picture, patch: int) -> Picture:
  """Undoes `folded`."""
  batch, high, wide, _ = x.shape
  x = x.reshape(batch, high, wide, patch, patch, -1)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, high * patch, wide * patch, -1)


def embed_time(
  p: Ask, config: UNetConfig, time: Int[Array, "B"]
) -> Float[Array, "B _t"]:
  """Embeds times; each part of the model has its own embedding."""
  width = config.channels[0]
  rates = jnp.exp(-math.log(_SLOWEST) * jnp.arange(width // 2) / (width // 2))
  angles = time[:, None].astype(jnp.float32) * rates[None]
  x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  x = layers.dense(p, "time_embedding.linear_1", x, 4 * width)
  return layers.dense(p, "time_embedding.linear_2", jax.nn.silu(x), 4 * width)


def encoder_block(
  p: Ask,
  config: UNetConfig,
  number: int,
  x: Picture,
  time: Float[Array, "B _t"],
  prompt: Tokens | None,
  attend: Attend = layers.computed,
) -> list[Picture]:
  """Computes one of the encoder's blocks.

  Args:
    p: parameters of the U-Net, or of the branch.
    config: the sizes.
    number: of the block; the last is the middle.
    x: what the block before gave last. The first block is given what `enter`
      gave.
    time: embedded.
    prompt: embeddings of its words, if `attend` needs them.
    attend: gives the outputs of attentions.

  Returns:
    Features for the decoder, in the order in which they were computed.
  """
  heads, groups = config.heads, config.groups
  if number == len(config.channels):
    width = config.channels[-1]
    x = layers.residual(p, "mid_block.resnets.0", x, time, width, groups)
    name = "mid_block.attentions.0"
    x = layers.transformer(p, name, x, prompt, attend, heads, groups)
    return [layers.residual(p, "mid_block.resnets.1", x, time, width, groups)]
  found, block, width = [], f"down_blocks.{number}", config.channels[number]
  for i in range(config.layers):
    x = layers.residual(p, f"{block}.resnets.{i}", x, time, width, groups)
    if config.attention[number]:
      name = f"{block}.attentions.{i}"
      x = layers.transformer(p, name, x, prompt, attend, heads, groups)
    found.append(x)
  if number + 1 < len(config.channels):
    name = f"{block}.downsamplers.0.conv"
    found.append(layers.conv(p, name, x, width, stride=2))
  return found


def enter(p: Ask, config: UNetConfig, x: Picture) -> Picture:
  """Computes the U-Net's first convolution."""
  return layers.conv(p, "conv_in", folded(x, config.patch), config.channels[0])


def decoder_block(
  p: Ask,
  config: UNetConfig,
  number: int,
  x: Picture,
  features: Sequence[Picture],
  time: Float[Array, "B _t"],
  prompt: Tokens | None,
  attend: Attend = layers.computed,
) -> Picture:
  """Computes one of the decoder's blocks, of which 0 has the smallest pictures.

  Args:
    p: parameters of the U-Net.
    config: the sizes.
    number: of the block.
    x: output of the block before; of the middle for the first.
    features: of the encoder, one for each layer, the last of them first.
    time: embedded.
    prompt: embeddings of its words, if `attend` needs them.
    attend: gives the outputs of attentions.
  """
  level = len(config.channels) - 1 - number
  block, width = f"up_blocks.{number}", config.channels[level]
  heads, groups = config.heads, config.groups
  for i, feature in enumerate(features):
    x = jnp.concatenate([x, feature], axis=-1)
    x = layers.residual(p, f"{block}.resnets.{i}", x, time, width, groups)
    if config.attention[level]:
      name = f"{block}.attentions.{i}"
      x = layers.transformer(p, name, x, prompt, attend, heads, groups)
  if level:
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    x = layers.conv(p, f"{block}.upsamplers.0.conv", x, width)
  return x


def leave(p: Ask, config: UNetConfig, x: Picture) -> Picture:
  """Computes the noise from what the decoder gives."""
  x = layers.group_norm(p, "conv_norm_out", x, config.groups, 1e-5)
  x = layers.conv(p, "conv_out", jax.nn.silu(x), _COLOURS * config.patch**2)
  return unfolded(x, config.patch)


def control(
  p: Ask,
  config: UNetConfig,
  x: Picture,
  condition: Picture,
  time: Int[Array, "B"],
  prompt: Tokens | None,
  attend: Attend = layers.computed,
) -> list[Picture]:
  """Computes the branch: what is added to each feature, the middle's last."""
  embedded = embed_time(p, config, time)
  name = "controlnet_cond_embedding.conv_in"
  seen = folded(condition, config.patch)
  seen = layers.conv(p, name, seen, config.condition_width)
  name = "controlnet_cond_embedding.conv_out"
  first = enter(p, config, x)
  first = first + layers.conv(p, name, jax.nn.silu(seen), first.shape[-1])
  found = [first]
  for number in range(config.encoder_blocks):
    found += encoder_block(
      p, config, number, found[-1], embedded, prompt, attend
    )
  names = [f"controlnet_down_blocks.{i}" for i in range(len(found) - 1)]
  return [
    layers.conv(p, name, feature, feature.shape[-1], side=1)
    for name, feature in zip(
      [*names, "controlnet_mid_block"], found, strict=True
    )
  ]


def shares(
  config: UNetConfig, features: Sequence[Picture]
) -> list[list[Picture]]:
  """Gives each of the decoder's blocks its features, the last ones first."""
  each = config.layers + 1
  back = list(reversed(features))
  return [back[i * each : (i + 1) * each] for i in range(config.decoder_blocks)]


def whole(name: str, run: Callable[[Attend], Any]) -> Any:
  """Computes a part of the model, as where nothing is cached (a `Part`)."""
  del name
  return run(layers.computed)


def noise(
  params: Params,
  config: UNetConfig,
  x: Picture,
  time: Int[Array, "B"],
  condition: Picture,
  words: Int[Array, "B n"],
  part: Part = whole,
) -> Picture:
  """Estimates the noise in pictures.

  Args:
    params: from `init`.
    config: the sizes.
    x: noisy pictures of the model's size.
    time: of each, 0 to 999.
    condition: masks, one channel.
    words: of the prompts; 0 is no word.
    part: gives what the parts "control", "encoder/0" and so on, of which the
      middle is the last, and "decoder/0" and so on give.
  """
  prompt = params["words"]["weight"][words]
  p, branch = (layers.taken(params[which]) for which in ("unet", "control"))
  return _noise(p, branch, config, x, time, condition, prompt, part)


def _noise(
  p: Ask, branch: Ask, config: UNetConfig, x, time, condition, prompt, part
) -> Picture:
  added = part(
    "control",
    lambda attend: control(branch, config, x, condition, time, prompt, attend),
  )
  embedded = embed_time(p, config, time)
  features: list[Picture] = []
  for i in range(config.encoder_blocks):

    def encode(attend: Attend, i=i, before=tuple(features)) -> list[Picture]:
      first = [] if i else [enter(p, config, x)]
      last = (*before, *first)[-1]
      found = encoder_block(p, config, i, last, embedded, prompt, attend)
      return first + found

    features += part(f"encoder/{i}", encode)
  *features, y = [a + b for a, b in zip(features, added, strict=True)]
  for i, share in enumerate(shares(config, features)):

    def decode(attend: Attend, i=i, y=y, share=share) -> Picture:
      return decoder_block(p, config, i, y, share, embedded, prompt, attend)

    y = part(f"decoder/{i}", decode)
  return leave(p, config, y)


@functools.partial(jax.jit, static_argnums=1)
def init(key: Array, config: UNetConfig) -> Params:
  """Draws parameters; the branch begins as a copy of the encoder."""
  unet: dict[str, Array] = {}
  branch: dict[str, Array] = {}
  keys = jax.random.split(key, 3)
  words = jax.random.normal(keys[2], (config.words, config.text_width))
  # Nothing of what this computes is in the program but the parameters.
  _noise(
    layers.made(keys[0], unet),
    layers.made(keys[1], branch),
    config,
    jnp.zeros((1, config.size, config.size, _COLOURS)),
    jnp.zeros((1,), jnp.int32),
    jnp.zeros((1, config.size, config.size, 1)),
    words[None, :1],
    whole,
  )
  zero = (
    "controlnet_down",
    "controlnet_mid",
    "controlnet_cond_embedding.conv_o",
  )
  for name, value in branch.items():
    if name.startswith(zero):
      branch[name] = jnp.zeros_like(value)
    else:
      branch[name] = unet.get(name, value)
  return {"unet": unet, "control": branch, "words": {"weight": words}}
