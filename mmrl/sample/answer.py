"""Answers about pictures and videos, with where each token looked."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Float
import numpy as np
from PIL import Image, ImageDraw

from mmrl import hub, models
from mmrl.errors import UserError
from mmrl.prompts import pictures
from mmrl.prompts.packing import Encoded
from mmrl.report.page import overlay
from mmrl.rollouts import sampler
from mmrl.types import Attention

# Most frames of a video to draw, spread evenly over it.
_FRAMES = 8
_SIDE = 224
# Layout of the sheet, pixels.
_TITLE, _GAP, _WIDTH = 20, 8, 1000


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and the attention of each of its tokens.

  Attributes:
    text: the answer.
    tokens: text of each token, its end included.
    encoded: the question.
    attention: head-mean attention of each token over the prompt. Attention on
      answer tokens is left out, and the rest isn't renormalised.
  """

  text: str
  tokens: Sequence[str]
  encoded: Encoded
  attention: Float[np.ndarray, "tokens S"]


def answer(
  model: hub.Model,
  messages: Sequence[dict[str, Any]],
  *,
  length: int,
  temperature: float = 0.0,
  seed: int = 0,
  layer: int = -1,
) -> Answer:
  """Answers one conversation.

  Args:
    model: the model.
    messages: the conversation; see `Processor.__call__`.
    length: most tokens of the answer.
    temperature: 0 is greedy.
    seed: of sampling.
    layer: decoder layer whose attention is returned.

  Raises:
    UserError: if a picture or video can't be read, or there is no such layer.
  """
  depth = model.config.text.num_hidden_layers
  if not -depth <= layer < depth:
    raise UserError(
      f"expected a layer of a {depth}-layer decoder, found {layer}"
    )
  encoded = model.processor.encode(messages, "the question")
  prompt = model.processor.collate([encoded])

  tokens, mask, rows = _run(
    model.params,
    model.config,
    prompt,
    jax.random.key(seed),
    layers=(layer,),
    length=length,
    temperature=temperature,
  )
  tokens, mask, rows = map(np.asarray, (tokens, mask, rows))
  count = int(mask.sum())
  tokenizer = model.processor.tokenizer
  real = np.nonzero(prompt.mask[0])[0]
  return Answer(
    text=model.processor.decode(tokens, mask)[0],
    tokens=[tokenizer.decode([i]) for i in tokens[0, 0, :count]],
    encoded=encoded,
    attention=rows[0, 0, :count, real].T,
  )


@functools.partial(
  jax.jit, static_argnames=("config", "layers", "length", "temperature")
)
def _run(params, config, prompt, key, *, layers, length, temperature):
  """Samples one answer; returns its tokens, mask and attention in `layers`."""
  rollout = sampler.rollout(
    params,
    config,
    prompt,
    key,
    attention_layers=layers,
    answers=1,
    length=length,
    temperature=temperature,
  )
  inputs = models.embed(params, config, rollout.tokens)
  assert rollout.prefix is not None
  output = models.extend(
    params, config, rollout.prefix, inputs, attention_layers=layers
  )
  assert isinstance(output.attention, Attention)
  rows = models.attention_rows(output.attention)
  return rollout.tokens, rollout.mask, rows


def draw(model: hub.Model, found: Answer, token: str) -> Image.Image:
  """Draws an answer's attention over its pictures and video frames.

  There is one strip per drawn token. Heat in a strip has one scale, so frames
  and pictures can be compared.

  Args:
    model: the model.
    found: from `answer`.
    token: number of an answer token, "all", or "mean" over all of them.

  Raises:
    UserError: if there is no such token, or no picture or video.
  """
  cuts = found.encoded.cuts
  if not cuts:
    raise UserError(
      "expected a picture or video to draw attention on, found none; pass"
      " --image or --video"
    )
  names, heats = _chosen(found, token)
  visual = found.encoded.visual_index >= 0
  strips = [_tiles(model, cuts, heat[visual]) for heat in heats]
  # Strips go side by side as far as they fit, each below its token's label.
  height = max(tile.height for tile in strips[0]) + _TITLE + _GAP
  width = sum(tile.width + _GAP for tile in strips[0]) + _GAP
  across = max(1, min(len(strips), _WIDTH // width))
  down = -(-len(strips) // across)
  sheet = Image.new("RGB", (width * across, height * down), "white")
  pen = ImageDraw.Draw(sheet)
  for number, (name, strip) in enumerate(zip(names, strips, strict=True)):
    x, y = number % across * width + _GAP, number // across * height
    pen.text((x, y + 4), name, fill="black")
    for tile in strip:
      sheet.paste(tile, (x, y + _TITLE))
      x += tile.width + _GAP
  return sheet


def _chosen(found: Answer, token: str):
  """Returns labels and attention of the tokens to draw."""
  heat = found.attention
  labels = [f"{i}: {text!r}"[:30] for i, text in enumerate(found.tokens)]
  if token == "mean":
    return ["mean"], heat.mean(0, keepdims=True)
  if token == "all":
    return labels, heat
  if not token.isdigit() or int(token) >= len(labels):
    raise UserError(
      f"expected --token 0 to {len(labels) - 1}, 'all' or 'mean', found"
      f" {token!r}"
    )
  return labels[int(token) :][:1], heat[int(token) :][:1]


def _tiles(model, cuts, heat: np.ndarray) -> list[Image.Image]:
  """Draws `heat` over every picture, and over some frames of every video."""
  processor, tower = model.processor, model.config.vision
  merge, start, tiles = tower.spatial_merge_size, 0, []
  top = max(float(heat.max()), 1e-12)
  for cut in cuts:
    frames, rows, columns = (
      cut.grid[0],
      cut.grid[1] // merge,
      cut.grid[2] // merge,
    )
    count = frames * rows * columns
    cells = heat[start : start + count].reshape(frames, rows, columns)
    start += count
    seen = pictures.pixels_of(cut, processor.picture, tower)
    step = tower.temporal_patch_size
    shown = np.linspace(0, frames - 1, min(frames, _FRAMES)).round()
    for frame in shown.astype(int):
      picture = seen[frame * step]
      tiles.append(overlay(picture, cells[frame], size=_SIDE, top=top))
  return tiles
