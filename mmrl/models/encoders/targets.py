"""Encoders by name: the model's own tower, a random projection, a ViT."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.models.encoders import files, packed, vision_transformer
from mmrl.types import PyTree


class Encoder(NamedTuple):
  """A frozen encoder.

  Attributes:
    init: (key, model config) -> its parameters.
    grid: rows and columns of its patches.
    width: model config -> width of a patch's features.
    apply: (parameters, model config, prompt, visual, frames) -> features
      [frames, patches, width], without CLS and register tokens.
  """

  init: Callable[[Any, ModelConfig], PyTree]
  grid: tuple[int, int]
  width: Callable[[ModelConfig], int]
  apply: Callable[..., Any]


def _check_side(side: Any, what: str = "side") -> None:
  if type(side) is not int or side < 1:
    raise UserError(
      f"{what}: expected a whole number of at least 1, found {side!r}"
    )


def own_tower(*, side: int = 8) -> Encoder:
  """Makes an encoder of the model's own frozen vision tower.

  Args:
    side: of the square grid that its visual tokens are resized to, bilinearly.
  """
  _check_side(side)

  def apply(params, config, prompt, visual, frames):
    del params, prompt
    visual = visual[..., : config.text.hidden_size]
    merge = config.vision.spatial_merge_size
    return packed.tokens(visual, frames, merge, side)

  return Encoder(
    init=lambda key, config: {},
    grid=(side, side),
    width=lambda config: config.text.hidden_size,
    apply=apply,
  )


def projection(
  *, width: int = 64, patch: int = 16, side: int = 128, seed: int = 0
) -> Encoder:
  """Makes an encoder that projects patches at random; it knows no pictures.

  Args:
    width: of its features.
    patch: side of a patch, pixels.
    side: of the square that pictures are scaled to, a multiple of `patch`.
    seed: of the projection.
  """
  for name, value in (("width", width), ("patch", patch), ("side", side)):
    _check_side(value, name)
  if side % patch:
    raise UserError(
      f"side: expected a multiple of patch = {patch}, found {side}"
    )
  count = side // patch

  def init(key, config):
    del key, config
    shape = patch**2 * 3, width
    values = np.random.default_rng(seed).normal(size=shape)
    return {"kernel": jnp.asarray(values / shape[0] ** 0.5, jnp.float32)}

  def apply(params, config, prompt, visual, frames):
    del visual
    pictures = packed.pictures(
      prompt.patches, frames, config.vision, config.family, side, side
    )
    x = packed.normalised(pictures, (0.5,) * 3, (0.5,) * 3)
    x = x.reshape(-1, count, patch, count, patch, 3)
    x = x.swapaxes(2, 3).reshape(len(x), count**2, -1)
    return x @ params["kernel"]

  return Encoder(init, (count, count), lambda config: width, apply)


def vit(*, path: str, side: int = 0) -> Encoder:
  """Makes an encoder of a directory in the Hugging Face layout.

  SigLIP and SigLIP 2 of one resolution, DINOv2 (with registers) and DINOv3.

  Args:
    path: the directory.
    side: of the square that pictures are scaled to, pixels, rounded down to
      whole patches; 0 is that of its config.json.

  Raises:
    UserError: if it is a directory of another kind.
  """
  if side:
    _check_side(side)
  settings = files.read(path)
  side = (side or settings.image_size) // settings.patch_size
  if not side:
    raise UserError(
      f"side: expected at least one patch of {settings.patch_size} pixels"
    )
  pixels = side * settings.patch_size

  def apply(params, config, prompt, visual, frames):
    del visual
    pictures = packed.pictures(
      prompt.patches, frames, config.vision, config.family, pixels, pixels
    )
    x = packed.normalised(pictures, settings.mean, settings.deviation)
    return vision_transformer.features(params, settings, x)

  return Encoder(
    init=lambda key, config: jax.tree.map(jnp.asarray, files.load(path)),
    grid=(side, side),
    width=lambda config: settings.hidden_size,
    apply=apply,
  )
