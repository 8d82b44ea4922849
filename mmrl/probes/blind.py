"""Image-blind probe: scores the answers to questions without their pictures."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.config import ModelConfig
from mmrl.probes.scores import Scorer
from mmrl.types import Prompt, PyTree, Scores


class ImageBlind(NamedTuple):
  """Log-probabilities without pictures, and which prompts have pictures."""

  logprobs_blind: Float[Array, "P G R"]
  pictured: Bool[Array, "P"]


def image_blind(
  scorer: Scorer,
  params: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
  scores_old: Scores,
) -> ImageBlind:
  """Computes log-probabilities of the answers without the pictures.

      ln pi_old(y_t | y_<t, q)    instead of    ln pi_old(y_t | y_<t, I, q)

  The vision tower doesn't run. See `without_pictures`.

  Args:
    scorer: of the run.
    params: of the policy that sampled the answers.
    prompt: the questions.
    tokens: of the answers.
    scores_old: of the answers, by the same policy, with the pictures.

  Returns:
    The log-probabilities, and which prompts have a picture. Prompts without
    one have exactly the log-probabilities of `scores_old`.

  Reference: ToR, arXiv 2603.25077 eq. 8.
  Reconstructed: the question without its picture is the text alone.
  """
  pictured = (prompt.visual_index >= 0).any(-1)
  width = scorer.config.text.hidden_size
  nothing = jnp.zeros((len(pictured), 1, width), scorer.config.dtype)
  text = without_pictures(prompt, scorer.config)
  plain = dataclasses.replace(scorer, layers=())
  prefix = plain.prefill(params, text, nothing)
  blind = plain(params, prefix, tokens).logprobs
  blind = jnp.where(pictured[:, None, None], blind, scores_old.logprobs)
  return ImageBlind(blind, pictured)


def without_pictures(prompt: Prompt, config: ModelConfig) -> Prompt:
  """Removes pictures and videos from prompts, keeping the padded length.

  It removes visual tokens and everything between the start and end marks of a
  picture or video, marks included; so also the times of a video's frames, if
  the family writes them there. The remaining tokens are packed, padded on the
  left, and get the positions of text. Prompts without a picture are unchanged.

  Args:
    prompt: the questions.
    config: of the model, for the ids of the marks.

  Returns:
    Prompts without visual tokens. `patches` are kept, and not read.

  Differs from the paper: text before and after a picture isn't joined before
  it is cut into tokens.
  """
  tokens, mask = prompt.tokens, prompt.mask
  visual = prompt.visual_index >= 0
  opens = mask & (tokens == config.vision_start_token_id)
  closes = mask & (tokens == config.vision_end_token_id)
  inside = jnp.cumsum(opens, axis=-1) > jnp.cumsum(closes, axis=-1)
  pictured = visual.any(-1, keepdims=True)
  keep = mask & ~(pictured & (visual | inside | closes))
  # Attention assumes that the real tokens of a prompt are contiguous.
  order = jnp.argsort(keep, axis=-1, stable=True)
  order = jnp.where(pictured, order, jnp.arange(order.shape[-1]))
  tokens = jnp.take_along_axis(tokens, order, axis=-1)
  keep = jnp.take_along_axis(keep, order, axis=-1)
  count = keep.sum(-1)
  place = jnp.cumsum(keep, axis=-1) - 1
  place = jnp.where(keep, place, 0).astype(prompt.positions.dtype)
  return dataclasses.replace(
    prompt,
    tokens=jnp.where(keep, tokens, config.pad_token_id),
    mask=keep,
    positions=jnp.stack([place] * 3, axis=-1),
    visual_index=jnp.full_like(prompt.visual_index, -1),
    next_position=count.astype(prompt.next_position.dtype),
    region=jnp.zeros_like(prompt.region),
    evidence=jnp.zeros_like(prompt.region),
  )
