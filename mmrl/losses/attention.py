"""Attention-policy losses, which treat attention as a policy.

RAL's target is the policy's own attention, with the advantage as its weight;
EASE, its labelled counterpart, has one from outside, for right answers only.
All terms are minimised.

Reference: Reinforced Attention Learning (RAL), arXiv 2602.04884.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.controls.placebo import hash_answers, mixed
from mmrl.errors import UserError
from mmrl.losses.surrogates import per_token, upcast
from mmrl.marks import marked
from mmrl.models.rows import map_rows
from mmrl.prompts import regions
from mmrl.types import Attention, Prompt

# Attention policies, computed row by row from `Attention` or precomputed.
Rows = Attention | Float[Array, "P G R keys"]
POSITIONS = ("all", "visual", "visual_scaled", "text")


def _log_to_middle(p: Array, q: Array) -> Array:
  """Computes `ln(2 p / (p + q))`, 0 where p is 0.

  Where p and q are near, it is computed as `ln(1 + (p - q) / (p + q))`, which
  avoids the rounding error of the quotient: attention moves little between two
  updates.
  """
  positive = p > 0
  total = jnp.where(positive, p + q, 1.0)
  change = jnp.where(positive, (p - q) / total, 0.0)
  # Neither is differentiated: the derivative of the divergence is written out.
  return jnp.where(
    jnp.abs(change) < 0.5, jnp.log1p(change), jnp.log(2.0 * p / total)
  )


@jax.custom_jvp
def jensen_shannon(
  p: Float[Array, "*batch keys"], q: Float[Array, "*batch keys"]
) -> Float[Array, "*batch"]:
  """Computes the Jensen-Shannon divergence along the last axis, in nats.

      m = (p + q) / 2,    JSD = 1/2 sum p ln(p/m) + 1/2 sum q ln(q/m)

  It is in [0, ln 2]. The derivative is explicit, dJSD/dp = 1/2 ln(p/m): it is
  exactly 0 where p = q, which automatic differentiation would miss by
  rounding.

  Args:
    p, q: distributions; all-zero rows have divergence 0.
  """
  terms = p * _log_to_middle(p, q) + q * _log_to_middle(q, p)
  return 0.5 * terms.sum(-1)


@jensen_shannon.defjvp
def _jensen_shannon_jvp(primals, tangents):
  p, q = primals
  dp, dq = tangents
  slope = dp * _log_to_middle(p, q) + dq * _log_to_middle(q, p)
  return jensen_shannon(p, q), 0.5 * slope.sum(-1)


def attention_divergence(
  attention: Rows,
  target: Rows,
  mask: Bool[Array, "P G R"],
  visual: Bool[Array, "P S"] | None = None,
  over: str = "all",
) -> Float[Array, "P G R"]:
  """Computes the JSD of each token's attention policy from a fixed target.

  Values on padding are arbitrary; the target has no gradient. A row of which
  nothing is on the chosen positions has divergence 0.

  Args:
    attention, target: policies.
    mask: True on answer tokens.
    visual: True on the prompt's visual tokens; read unless `over` is "all".
    over: of `POSITIONS`; see `attention_jsd`.
  """

  def of_rows(p, q, mask):
    # Masked before the divergence: padding must not reach its derivative.
    seen = mask[..., None]
    p, q = upcast(p), upcast(q)
    if over != "all":
      assert visual is not None
      own = jnp.zeros((len(visual), p.shape[-1] - visual.shape[1]), bool)
      chosen = jnp.concatenate([visual, own], axis=-1)[:, None, None]
      chosen = ~chosen if over == "text" else chosen
      seen, q = seen & chosen, jnp.where(chosen, q, 0.0)
    p = jnp.where(seen, p, 0.0)
    if over == "visual_scaled":
      p, q = (x / _or_one(x.sum(-1, keepdims=True)) for x in (p, q))
    return jensen_shannon(p, q)

  return map_rows(of_rows, attention, jax.lax.stop_gradient(target), mask)


def _or_one(x: Array) -> Array:
  return jnp.where(x > 0, x, 1.0)


def _check_jsd(*, over: str = "all", **_: bool) -> None:
  if over not in POSITIONS:
    raise UserError(f"over must be one of {', '.join(POSITIONS)}, got {over!r}")


@marked(check=_check_jsd)
def attention_jsd(
  attention: Rows,
  attention_old: Rows,
  advantages: Float[Array, "P G"] | Float[Array, "P G R"],
  mask: Bool[Array, "P G R"],
  attention_moved: Float[Array, "P G R"] | None = None,
  attention_target: Rows | None = None,
  prompt: Prompt | None = None,
  *,
  over: str = "all",
  good_only: bool = False,
) -> Float[Array, "P G R"]:
  """Computes RAL's term: advantage times JSD from the behaviour's attention.

      loss_t = A_t JSD(p_theta^t || p_old^t)

  The term is minimised: a positive advantage pulls attention back to what it
  was when the answer was sampled, a negative one pushes it away. Value and
  gradient are exactly 0 at theta = theta_old, so a run needs at least two
  updates per rollout batch for the term to act.

  Args:
    attention: policies of the current parameters, from `mmrl.models.score`.
    attention_old: policies of the behaviour parameters, same function.
    advantages: of each answer, or of each token.
    mask: True on answer tokens.
    attention_moved: the divergence of `attention_old`, if already computed: see
      `mmrl.train.objective`, which also reports it.
    attention_target: policies to measure from instead, if a probe of the config
      adds them: `attention_reference` or `attention_average`. Value and
      gradient are then not 0 at theta_old.
    prompt: tells which positions are visual.
    over: positions that the divergence is over: "all", as in the paper;
      "visual" or "text", of the rows as they are; "visual_scaled", of rows
      whose attention on visual tokens is scaled to sum 1.
    good_only: whether negative advantages count as 0.

  Returns:
    The unreduced term. It is neither clipped nor weighted by the ratio.

  Raises:
    UserError: if `over` is none of these.

  Reference: arXiv 2602.04884 eq. 3.
  Differs from the paper: eq. 4 as printed adds this to a quantity that is
  maximised; the consistent reading, minimise -clipped + beta KL + lambda
  attention, is what the losses of a config add up to. Options other than the
  defaults aren't the paper's.
  """
  moved = attention_moved
  if moved is None or over != "all" or attention_target is not None:
    target = attention_old if attention_target is None else attention_target
    visual = None if prompt is None else prompt.visual_index >= 0
    moved = attention_divergence(attention, target, mask, visual, over)
  advantages = jax.lax.stop_gradient(per_token(advantages))
  if good_only:
    advantages = jnp.maximum(advantages, 0.0)
  return jnp.where(mask, advantages * moved, 0.0)


def _check_evidence(
  *,
  gate: float = 0.5,
  background: float = 0.1,
  sampled_tokens: int = 64,
  **_: Any,
) -> None:
  del gate  # Any number will do.
  if not 0 < background <= 1:
    raise UserError(f"background must be in (0, 1], got {background}")
  if sampled_tokens < 1:
    raise UserError(f"sampled_tokens must be at least 1, got {sampled_tokens}")


@marked(
  check=_check_evidence,
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
  rolled: bool = False,
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
    rolled: whether the evidence is at a wrong place, as a placebo.

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
  if rolled:
    prompt = regions.rolled(prompt)
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
    p = on_visual / _or_one(total)
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
  answer = hash_answers(tokens, mask)[..., None]
  # The highest bit, set on padding only, puts it last.
  draw = mixed(answer ^ mixed(~place)) >> 1
  order = jnp.argsort(
    jnp.where(mask, draw, jnp.uint32(1 << 31)), axis=-1, stable=True
  )
  rank = jnp.argsort(order, axis=-1, stable=True)
  return mask & (rank < count)
