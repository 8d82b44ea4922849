"""Attention of a small model, densely: what rewards of it are compared with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import small_models

from mmrl import models
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt, PyTree

G, R = 2, 14
LENGTHS = np.array([[R, 3], [12, 1], [0, 13]])


@dataclasses.dataclass(frozen=True)
class Stage:
  """Answers to questions about pictures, and all attention.

  Attributes:
    config, params: the model.
    prompt, tokens, mask: the batch; padded on the left, of three lengths.
    visual: visual tokens.
    rows: float64 [P, G, R, L, S + R], mean over heads, of each answer token;
      padding isn't zero.
    last: float64 [P, L, S + R], that of the last prompt token.
  """

  config: object
  params: PyTree
  prompt: Prompt
  tokens: jax.Array
  mask: jax.Array
  visual: jax.Array
  rows: np.ndarray
  last: np.ndarray

  def scorer(self, layers=(-1,), row="self") -> Scorer:
    """A scorer at temperature 1."""
    return Scorer(self.config, 1.0, layers, row)

  def scores(self, **options):
    """Scores of the answers."""
    scorer = self.scorer(**options)
    return _scores(scorer, self.params, self.prompt, self.visual, self.tokens)


@functools.partial(jax.jit, static_argnums=0)
def _scores(scorer, params, prompt, visual, tokens):
  prefix = scorer.prefill(params, prompt, visual)
  return scorer(params, prefix, tokens)


@functools.partial(jax.jit, static_argnums=0)
def _visual_and_maps(config, params, prompt, whole):
  maps = models.apply(params, config, whole, attention="all").attention
  return models.vision(params, config, prompt.patches), maps


def conversations() -> list[list[dict]]:
  """One picture with a region, one of two with two boxes, and none marked."""

  def shown(height, width, seed, **more):
    image = small_models.picture(height, width, seed)
    return {"type": "image", "image": image, **more}

  return [
    small_models.user(shown(24, 40, 1, region=(9, 1, 20, 13)), "what is it?"),
    small_models.user(
      *("is ", shown(32, 32, 2, region=[(0, 0, 9, 9), (17, 9, 32, 30)])),
      *(" in ", shown(24, 32, 3), "?"),
    ),
    small_models.user(shown(16, 16, 4), "say yes"),
  ]


@functools.cache
def ask(family: str = "qwen2_5_vl", left: int = 0) -> Prompt:
  """The prompts alone, for which nothing is computed."""
  config = small_models.small_config(family=family)
  chats = conversations()
  prompt = small_models.make_processor(config)(chats, rows=len(chats))
  return small_models.on_device(small_models.pad_prompt(prompt, left=left))


@functools.cache
def make(family: str = "qwen2_5_vl", left: int = 0, room: int = 0) -> Stage:
  """The stage, with more padding of prompts or answers."""
  config = small_models.small_config(family=family)
  params = small_models.make_params(config)
  # Attention that differs from key to key.
  params = jax.tree.map(lambda x: 2 * x if x.ndim > 2 else x, params)
  prompt = ask(family, left)
  count, start = prompt.tokens.shape
  drawn = np.random.default_rng(5).integers(97, 123, (count, G, R))
  tokens = np.pad(drawn, ((0, 0), (0, 0), (0, room)), constant_values=65)
  whole = small_models.full_rows(jax.device_get(prompt), tokens)
  visual, maps = _visual_and_maps(config, params, prompt, whole)
  maps = np.asarray(maps, np.float64).mean(2)
  keys = maps.shape[-1]
  maps = np.moveaxis(maps, 0, 1).reshape(count, G, -1, keys, keys)
  return Stage(
    config=config,
    params=params,
    prompt=prompt,
    tokens=jnp.asarray(tokens, jnp.int32),
    mask=jnp.asarray(np.arange(R + room) < LENGTHS[..., None]),
    visual=visual,
    rows=np.moveaxis(maps[:, :, :, start:], 2, 3),
    last=maps[:, 0, :, start - 1],
  )
