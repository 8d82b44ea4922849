"""Look-Back's probe: shares of attention on picture, question and answer."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.probes.scores import Scorer
from mmrl.types import Prompt, PyTree


class AttentionShares(NamedTuple):
  """Shares of each answer token's attention, mean over layers."""

  attention_shares_old: Float[Array, "P G R 3"]


def attention_shares(
  scorer: Scorer,
  params: PyTree,
  prompt: Prompt,
  visual: Float[Array, "B N E"],
  tokens: Int[Array, "P G R"],
) -> AttentionShares:
  """Computes which share of attention falls on picture, question and answer.

  See `shares`. The rows are those of the answer tokens, mean over heads, of
  all layers.

  Args:
    scorer: of the run.
    params: of the policy that sampled the answers.
    prompt: the questions.
    visual: their visual tokens.
    tokens: of the answers.

  Reference: Look-Back, arXiv 2507.03019, as its published code draws it.
  """
  every = scorer.over_all_layers()
  parts = parts_of(prompt)
  sums = every.weighed_rows(params, prompt, visual, tokens, lambda _: parts)
  return AttentionShares(shares(sums))


def parts_of(prompt: Prompt) -> Float[Array, "P S 3"]:
  """Marks the positions of picture, question, and all from the picture on.

  The question begins behind the mark that ends the last picture, and goes on to
  the end of the prompt. That mark, and text between pictures, are in neither of
  the two. What comes before the first picture, mostly the system's text, which
  draws attention whatever it says, is in none.

  Reconstructed: a prompt without a picture is all question.
  """
  visual = prompt.visual_index >= 0
  place = jnp.arange(visual.shape[-1])[None]
  pictured = visual.any(-1, keepdims=True)
  first = jnp.where(pictured, visual.argmax(-1, keepdims=True), 0)
  last = visual.shape[-1] - 1 - visual[:, ::-1].argmax(-1, keepdims=True)
  after = prompt.mask & (place >= first)
  question = prompt.mask & (~pictured | (place > last + 1))
  return jnp.stack([visual, question, after], axis=-1).astype(jnp.float32)


def shares(
  sums: Float[Array, "P G R layers 4"],
) -> Float[Array, "P G R 3"]:
  """Computes mean shares over layers.

      Z = all from the first picture on
      share = mean over layers of (sum over a part) / Z,    0 where Z is 0

  Args:
    sums: of each row, over picture, question, all of the prompt from the first
      picture on, and the answer.
  """
  z = (sums[..., 2] + sums[..., 3])[..., None]
  parts = jnp.stack([sums[..., 0], sums[..., 1], sums[..., 3]], axis=-1)
  return jnp.where(z > 0, parts / jnp.where(z > 0, z, 1.0), 0.0).mean(3)
