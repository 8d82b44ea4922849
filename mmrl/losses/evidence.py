"""EASE's loss: attention on visual tokens is drawn to a marked region.

It is the labelled counterpart of RAL (`mmrl.losses.attention`): a target from
outside instead of the policy's own attention, right answers only, no advantage.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError
from mmrl.losses.surrogates import upcast
from mmrl.marks import marked
from mmrl.models.rows import map_rows
from mmrl.types import Attention, Prompt


def _check(
  *,
  gate: float = 0.5,
  background: float = 0.1,
  sampled_tokens: int = 64,
  without: Literal["refuse", "skip"] = "refuse",
) -> None:
  del gate, without  # Any number will do.
  if not 0 < background <= 1:
    raise UserError(f"background must be in (0, 1], got {background}")
  if sampled_tokens < 1:
    raise UserError(f"sampled_tokens must be at least 1, got {sampled_tokens}")


@marked(
  check=_check,
  needs_region=lambda *, without="refuse", **_: without == "refuse",
)
def evidence_kl(
  attention: Attention | Float[Array, "P G R keys"],
  prompt: Prompt,
  rewards: Float[Array, "P G"],
  tokens: Int[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  *,
  gate: float = 0.5,
  background: float = 0.1,
  sampled_tokens: int = 64,
  without: Literal["refuse", "skip"] = "refuse",
) -> Float[Array, "P G R"]:
  """Computes EASE's term: KL of visual attention to an evidence target.

      p_t = attention of token t on visual tokens, scaled to sum 1
      q   = (1 - background) evidence + background / number of visual tokens
      loss_t = KL(p_t || q) n / k   on k sampled of an answer's n tokens,
               if its reward > gate,    else 0

  With the factor n / k a mean over an answer's tokens is, in expectation, that
  without sampling. Which tokens are sampled depends on nothing but the answer.

  Args:
    attention: policies of the current parameters, of one layer; the only
      argument with a gradient. Their scale cancels.
    prompt: holds the evidence, see `mmrl.prompts.regions`.
    rewards: the total reward.
    tokens: ids of the answers.
    mask: True on answer tokens.
    gate: reward that an answer must exceed.
    background: share of the target that is uniform, in (0, 1].
    sampled_tokens: the largest k, at least 1.
    without: what to do about questions without a region: "refuse" the data, or
      "skip", no term.

  Returns:
    The unreduced term, at least 0.

  Raises:
    UserError: if an option is outside its range.

  Reference: EASE, arXiv 2605.30912.
  Reconstructed: only another's account could be read. Heads are averaged before
  p is scaled, the factor n / k, and how a mean counts answers below the gate
  (its reduction says it) are chosen here.
  """
  del without  # Read before the run starts.
  assert prompt.evidence is not None
  visual = prompt.visual_index >= 0
  count = jnp.maximum(visual.sum(-1, keepdims=True), 1)
  target = (1 - background) * upcast(prompt.evidence) + background / count
  shown = (prompt.evidence.sum(-1) > 0)[:, None, None]
  gated = (upcast(rewards) > gate)[..., None]
  chosen = sample_tokens(tokens, mask, sampled_tokens) & shown & gated
  logs = jnp.where(visual, jnp.log(target), 0.0)[:, None, None]

  def of_rows(rows, chosen):
    # Masked first: padding must not reach the logarithm's derivative.
    seen = chosen[..., None] & visual[:, None, None]
    on_visual = jnp.where(seen, upcast(rows[..., : visual.shape[-1]]), 0.0)
    total = on_visual.sum(-1, keepdims=True)
    p = on_visual / jnp.where(total > 0, total, 1.0)
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))
    return (p * (log_p - logs)).sum(-1)

  found = map_rows(of_rows, attention, chosen)
  length = mask.sum(-1, keepdims=True)
  factor = length / jnp.maximum(jnp.minimum(length, sampled_tokens), 1)
  return jnp.where(chosen, found * factor, 0.0)


def sample_tokens(
  tokens: Int[Array, "P G R"], mask: Bool[Array, "P G R"], count: int
) -> Bool[Array, "P G R"]:
  """Selects at most `count` tokens of each answer, by a hash of the answer.

  So it is the same in every minibatch, on every device and at any padding, and
  as good as random from one answer to the next.
  """
  place = jnp.arange(mask.shape[-1], dtype=jnp.uint32)[None, None]
  each = _mixed(tokens.astype(jnp.uint32) ^ _mixed(place))
  answer = jnp.where(mask, each, 0).sum(-1, keepdims=True, dtype=jnp.uint32)
  # The highest bit, set on padding only, puts it last.
  draw = _mixed(answer ^ _mixed(~place)) >> 1
  order = jnp.argsort(
    jnp.where(mask, draw, jnp.uint32(1 << 31)), axis=-1, stable=True
  )
  rank = jnp.argsort(order, axis=-1, stable=True)
  return mask & (rank < count)


def _mixed(x: Array) -> Array:
  """Mixes the bits of uint32 numbers, as MurmurHash3 ends."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
