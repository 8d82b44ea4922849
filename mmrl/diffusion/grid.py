"""Grids of pictures that were sampled with and without caches."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmrl.diffusion import cache, ddim, macs, plan, shapes, training
from mmrl.diffusion.plan import HGCConfig
from mmrl.errors import UserError
from mmrl.worlds import sheet

_PER_PIXEL = 8  # pixels of the grid for one of a picture
_GREY = 160  # of a condition's shapes


def config_of(given: Any, keys: Mapping[str, tuple[int, ...]]):
  """Makes what is cached of the flags; what isn't given is for fewer steps.

  Args:
    given: has the values of flags as attributes.
    keys: key steps that were chosen by similarity; empty if none were.

  Raises:
    UserError: if a list has what is no number.
  """
  base = HGCConfig()
  gate = min(base.gate, given.steps) if given.gate is None else given.gate
  found: dict[str, Any] = {"gate": gate, "intra": given.intra}
  for name in ("key_control", "key_encoder"):
    steps = getattr(given, name)
    if steps is None:
      fitting = [x for x in getattr(base, name) if x < given.steps]
      found[name] = keys.get(name, tuple(fitting))
    elif keys:
      raise UserError(f"expected --{name} or --tau, found both; leave one out")
    else:
      found[name] = _numbers(f"--{name}", steps, int)
  if given.inter is not None:
    found["inter"] = _numbers("--inter", given.inter, float)
    if len(found["inter"]) == 1:
      (found["inter"],) = found["inter"]
  return dataclasses.replace(base, **found)


def _numbers(flag: str, texts: list[str], kind: type) -> tuple:
  try:
    return tuple(map(kind, texts))
  except ValueError as error:
    raise UserError(
      f"{flag}: expected numbers with commas between them, found"
      f" {','.join(texts)!r:.80}"
    ) from error


def words_of(prompt: str) -> list[int]:
  """Returns the numbers of a prompt's two words.

  Raises:
    UserError: if it isn't a colour and a texture.
  """
  parts = prompt.split()
  kinds = shapes.COLOURS, shapes.TEXTURES
  fits = len(parts) == 2 and all(
    part in kind for part, kind in zip(parts, kinds, strict=True)
  )
  if not fits:
    raise UserError(
      f"--prompt: expected a colour ({', '.join(kinds[0])}) and a texture"
      f" ({', '.join(kinds[1])}), found {prompt!r:.80}"
    )
  return [shapes.WORDS.index(part) for part in parts]


def sampled(given: Any) -> Image.Image:
  """Samples, and draws the grid.

  Args:
    given: has the values of flags as attributes.

  Raises:
    UserError: naming the flag that is wrong.
  """
  words = words_of(given.prompt) if given.prompt else None
  config, params = training.load(given.model)
  blocks = {
    "encoder_blocks": config.encoder_blocks,
    "decoder_blocks": config.decoder_blocks,
  }
  # What is wrong with the plan is told before anything is computed.
  first: dict[str, tuple[int, ...]] = {}
  if given.tau is not None:
    first["key_control"] = (0,)
  made = plan.plan(config_of(given, first), steps=given.steps, **blocks)
  keys = jax.random.split(jax.random.key(given.seed))
  drawn = shapes.draw(keys[0], given.count, config.size)
  if words:
    asked = jnp.broadcast_to(jnp.asarray(words)[None], drawn.words.shape)
    drawn = drawn._replace(words=asked)
  noise = jax.random.normal(keys[1], drawn.pictures.shape)
  inputs = params, config, noise, drawn.masks, drawn.words
  if given.tau is not None:
    found = jax.device_get(
      cache.features(*inputs, steps=given.steps, weight=given.weight)
    )
    chosen = {
      f"key_{name}": plan.pick_key_steps(x, tau=given.tau)
      for name, x in found.items()
    }
    made = plan.plan(config_of(given, chosen), steps=given.steps, **blocks)
  whole = jax.jit(
    functools.partial(ddim.sample, steps=given.steps, weight=given.weight),
    static_argnums=1,
  )(*inputs)
  cached = cache.sample(*inputs, plan=made, weight=given.weight)
  cost = macs.costs(config)
  all_macs = macs.macs(plan.full(given.steps, **blocks), cost)
  return draw(drawn, whole, cached, all_macs, macs.macs(made, cost))


def draw(drawn: Any, whole: Any, cached: Any, macs: float, fewer: float):
  """Draws the grid of pictures that were sampled with and without caches.

  Args:
    drawn: masks and prompts (`shapes.Drawn`).
    whole: pictures without a cache.
    cached: pictures with one.
    macs: of a picture without a cache.
    fewer: of one with it.
  """
  pictures = {"full": whole, "cached": cached}
  measured = {
    name: jax.device_get(shapes.measure(x, drawn.masks, drawn.words))
    for name, x in pictures.items()
  }
  alike = np.asarray(shapes.psnr(whole, cached))
  masks = np.asarray(drawn.masks)
  shown = {name: bytes_of(np.asarray(x)) for name, x in pictures.items()}
  far = np.abs(shown["full"].astype(int) - shown["cached"])
  costs = {"full": macs, "cached": fewer}
  panels = []
  for i, words in enumerate(np.asarray(drawn.words)):
    asked = " ".join(shapes.WORDS[word] for word in words)
    condition = np.repeat(255 - masks[i] * (255 - _GREY), 3, -1)
    row = [("condition\n" + asked, condition)]
    for name, values in measured.items():
      read = "right" if values["prompt"][i] else "wrong"
      saved = f" ({fewer / macs - 1:+.0%})" if name == "cached" else ""
      text = f"{name}{saved}\n{costs[name] / 1e6:,.0f} M MACs\n"
      text += f"IoU {values['iou'][i]:.2f}, prompt {read}"
      row.append((text, shown[name][i]))
    row.append((f"difference\nPSNR {alike[i]:.1f} dB", 255 - far[i]))
    panels += [
      sheet.Panel([picture.astype(np.uint8)], [[]], text)
      for text, picture in row
    ]
  return sheet.draw(panels, columns=4, scale=_PER_PIXEL)


def bytes_of(pictures):
  """Returns pictures in [-1, 1] as bytes; what is outside is cut off."""
  return np.round((np.clip(pictures, -1, 1) + 1) * 127.5).astype(np.uint8)
