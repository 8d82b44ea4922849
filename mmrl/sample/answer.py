"""Answers about pictures and videos, with where each token looked."""

import bisect
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jaxtyping import Float
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrl import hub, models
from mmrl.errors import UserError
from mmrl.models.passes import latent
from mmrl.prompts.packing import Encoded
from mmrl.prompts.pictures import Cut
from mmrl.report import drawing
from mmrl.rollouts import sampler
from mmrl.strategies.ask import written
from mmrl.types import Attention

# Most frames of a video to draw, spread evenly over it.
_FRAMES = 8
# Longer side of a picture: of one of several, and of a single one.
_SIDE, _ALONE = 224, 448
# Layout of the sheet, pixels: size of letters, and of a line; room of a strip's
# label; gaps; most that strips side by side take; least width.
_HEAD, _LINE, _LABEL, _GAP, _WIDTH, _LEAST = 18, 26, 34, 12, 1180, 640
_KEY = "In colour: attention above the mean over all that is shown."


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and the attention of each of its tokens.

  Attributes:
    question: the texts of the conversation.
    text: the answer.
    tokens: text of each token, its end included.
    encoded: the question.
    attention: head-mean attention of each token over the prompt. Attention on
      answer tokens is left out, and the rest isn't renormalised.
  """

  question: str
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
    question=written(messages),
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
  assert rollout.prefix is not None
  inputs = latent.embed(params, config, rollout.prefix, rollout.tokens)
  output = models.extend(
    params,
    config,
    rollout.prefix,
    inputs,
    attention_layers=layers,
    tokens=rollout.tokens,
  )
  assert isinstance(output.attention, Attention)
  rows = models.attention_rows(output.attention)
  return rollout.tokens, rollout.mask, rows


def draw(model: hub.Model, found: Answer, token: str) -> Image.Image:
  """Draws question, answer, and the answer's attention on what is shown.

  There is one strip of pictures and video frames per drawn token. Heat in a
  strip has one scale, so frames and pictures can be compared. Letters are
  Latin; the font draws others as boxes.

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
  seen = _seen(model, cuts)
  side = _ALONE if len(heats) == len(seen) == 1 else _SIDE
  strips = [
    drawing.strip(
      [
        drawing.overlay(x, heat[at], size=side, scale=drawing.span(heat))
        for x, at in seen
      ]
    )
    for heat in heats[:, found.encoded.visual_index >= 0]
  ]
  # Strips go side by side as far as they fit, each below its token's label.
  width, height = strips[0].width + _GAP, strips[0].height + _LABEL + _GAP
  across = max(1, min(len(strips), _WIDTH // width))
  down = -(-len(strips) // across)
  inner = max(width * across - _GAP, _LEAST)
  head = [
    (line, colour)
    for text, colour in (
      (f"Question: {found.question}", "black"),
      (f"Answer: {found.text}", "#2458c5"),
      (_KEY, "#5c6570"),
    )
    for line in _lines(text, inner)
  ]
  top = _GAP + _LINE * len(head)
  size = inner + 2 * _GAP, top + height * down + _GAP
  sheet = Image.new("RGB", size, "white")
  pen = ImageDraw.Draw(sheet)
  for number, (line, colour) in enumerate(head):
    pen.text((_GAP, _GAP + _LINE * number), line, colour, _font(_HEAD))
  for number, (name, strip) in enumerate(zip(names, strips, strict=True)):
    x, y = number % across * width + _GAP, number // across * height + top
    (label, *_) = _lines(name, strip.width)
    pen.text((x, y + _GAP // 2), label, "black", _font(_HEAD))
    sheet.paste(strip, (x, y + _LABEL))
  return sheet


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size)


def _lines(text: str, width: int) -> list[str]:
  """Breaks a text into lines, at spaces where there are some."""
  rest, lines = " ".join(text.split()), []
  while rest:
    # Beginnings get wider with every letter: the longest that fits.
    wide = functools.partial(_length, rest)
    count = bisect.bisect(range(1, len(rest) + 1), width, key=wide) or 1
    if count < len(rest) and " " in rest[: count + 1]:
      count = rest.rindex(" ", 0, count + 1)
    lines.append(rest[:count])
    rest = rest[count:].lstrip()
  return lines or [""]


def _length(text: str, count: int) -> int:
  """Returns the width of the beginning of a text, pixels rounded up."""
  return math.ceil(_font(_HEAD).getlength(text[:count]))


def _chosen(found: Answer, token: str):
  """Returns labels and attention of the tokens to draw."""
  heat = found.attention
  labels = [f"{i}: {text!r}" for i, text in enumerate(found.tokens)]
  if token == "mean":
    return ["mean of all tokens"], heat.mean(0, keepdims=True)
  if token == "all":
    return labels, heat
  if not token.isdigit() or int(token) >= len(labels):
    raise UserError(
      f"expected --token 0 to {len(labels) - 1}, 'all' or 'mean', found"
      f" {token!r}"
    )
  return labels[int(token) :][:1], heat[int(token) :][:1]


def _seen(
  model: hub.Model, cuts: Sequence[Cut]
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns every picture, and some frames of every video.

  Each is beside the numbers of its visual tokens, [rows, columns].
  """
  start = 0
  found: list[tuple[np.ndarray, np.ndarray]] = []
  for cut in cuts:
    shape = cut.cells(model.config.vision)
    cells = start + np.arange(math.prod(shape)).reshape(shape)
    start += cells.size
    chosen, seen = drawing.views(cut, model.processor, _FRAMES)
    found += zip(seen, cells[chosen], strict=True)
  return found
