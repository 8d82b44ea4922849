"""Preference losses over three samples: two answers, and another picture.

A pair is two prompts, one after the other: the question about its picture, with
the chosen and the rejected answer, and the same question about the picture
without its key element, with the chosen answer alone. That gives an implicit
reward r = beta (ln pi - ln pi_ref), summed over tokens, of three samples:

    ++  right picture, chosen answer
    +-  right picture, rejected answer     the language negative
    -+  wrong picture, chosen answer       the vision negative

Both losses are terms of a prompt [P], reduced by `prompt_mean`: the mean over
pairs, as the prompts about other pictures lack an answer and don't count.

Reference: AdaViP, arXiv 2504.15619.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import preference
from mmrl.losses.state import Measured


def sample_rewards(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  chosen: Bool[Array, "P G"],
  twin: Bool[Array, "P"],
  mask: Bool[Array, "P G R"],
  *,
  beta: float,
) -> Float[Array, "pairs 3"]:
  """Computes the rewards of each pair's samples, in the order ++, +-, -+.

  That of a vision negative that isn't there is -inf.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_ref: of the frozen reference.
    chosen: True on the preferred answer to each prompt.
    twin: True on the prompts about another picture than the one before.
    mask: True on answer tokens; False on the answer to a twin whose picture has
      no key element.
    beta: above 0.

  Raises:
    UserError: if beta isn't above 0, or prompts aren't in twos.
  """
  preference.check_beta(beta)
  if len(mask) % 2:
    raise UserError(
      f"prompts of one question belong together in twos, got {len(mask)}; make"
      " config.rollout.prompts / (train.minibatches x train.accumulate x shards"
      " of the mesh) and config.shares.prompts even"
    )
  ratio = preference.answer_logprob(
    logprobs, mask, "sum"
  ) - preference.answer_logprob(logprobs_ref, mask, "sum")
  of_chosen, of_rejected = preference.split_pair(beta * ratio, chosen)
  present, _ = preference.split_pair(mask.any(-1).astype(jnp.float32), chosen)
  # In the log-probabilities, -inf - (-inf) would be NaN.
  seen = (present > 0) & twin
  vision = jnp.where(seen[1::2], of_chosen[1::2], -jnp.inf)
  return jnp.stack([of_chosen[::2], of_rejected[::2], vision], axis=-1)


def joint(rewards: Float[Array, "pairs 3"]) -> Float[Array, "pairs"]:
  """Computes ln sum_j exp r_j - r_++ of each pair."""
  return jax.nn.logsumexp(rewards, axis=-1) - rewards[:, 0]


def mixed(
  rewards: Float[Array, "pairs 3"], weight: float
) -> Float[Array, "pairs"]:
  """Computes -ln sigmoid(r_++ - r_+-) - weight ln sigmoid(r_++ - r_-+)."""
  ahead = jax.nn.log_sigmoid(rewards[:, :1] - rewards[:, 1:])
  return -ahead[:, 0] - weight * ahead[:, 1]


def joint_preference(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  chosen: Bool[Array, "P G"],
  twin: Bool[Array, "P"],
  mask: Bool[Array, "P G R"],
  *,
  beta: float = 0.1,
) -> Measured:
  """Computes AdaViP's loss: cross-entropy of the right sample among three.

      loss = ln(exp r_++ + exp r_+- + exp r_-+) - r_++
      d loss / d r = [-(1 - p_++), p_+-, p_-+],    p = softmax(r)

  Nothing balances the negatives: each has the weight with which the policy
  still finds it plausible. A pair without a vision negative has DPO's loss.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_ref: of the frozen reference.
    chosen: True on the preferred answer to each prompt.
    twin: True on the prompts about another picture than the one before.
    mask: True on answer tokens.
    beta: above 0.

  Returns:
    The unreduced loss, 0 on twins. Numbers to log are the rewards, p_++, the
    weights p_+- and p_-+ of the negatives, the logarithm of their ratio,
    vision to language, and of each negative the margin of r_++ and the share
    of margins above 0; those of vision over the pairs that have one.

  Raises:
    UserError: if beta isn't above 0, or prompts aren't in twos.

  Reference: arXiv 2504.15619.
  Reconstructed: the formula, from a published review of the paper, and beta and
  the sum over tokens, from code of the same authors.
  """
  rewards = sample_rewards(
    logprobs, logprobs_ref, chosen, twin, mask, beta=beta
  )
  return _measured(joint(rewards), rewards)


def mixed_preference(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  chosen: Bool[Array, "P G"],
  twin: Bool[Array, "P"],
  mask: Bool[Array, "P G R"],
  *,
  beta: float = 0.1,
  vision_weight: float = 0.5,
) -> Measured:
  """Computes DPO of the answers plus `vision_weight` times DPO of the pictures.

      loss = -ln sigmoid(r_++ - r_+-) - vision_weight ln sigmoid(r_++ - r_-+)

  What `joint_preference` is compared with.

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_ref: of the frozen reference.
    chosen: True on the preferred answer to each prompt.
    twin: True on the prompts about another picture than the one before.
    mask: True on answer tokens.
    beta: above 0.
    vision_weight: of the pictures, at least 0.

  Returns:
    As `joint_preference`; the weights among the numbers are those that it
    would have.

  Raises:
    UserError: if an option is outside its range, or prompts aren't in twos.

  Reference: the baseline of arXiv 2504.15619; mDPO, arXiv 2406.11839.
  """
  if not vision_weight >= 0:
    raise UserError(f"vision_weight must be at least 0, got {vision_weight}")
  rewards = sample_rewards(
    logprobs, logprobs_ref, chosen, twin, mask, beta=beta
  )
  return _measured(mixed(rewards, vision_weight), rewards)


def _measured(
  loss: Float[Array, "pairs"], rewards: Float[Array, "pairs 3"]
) -> Measured:
  """Returns loss and numbers of pairs as those of their prompts."""
  weights = jax.nn.softmax(rewards, axis=-1)
  right, language, vision = rewards.T
  seen = jnp.isfinite(vision)
  numbers = {
    "reward": right,
    "reward_language": language,
    "reward_vision": vision,
    "probability": weights[:, 0],
    "weight_language": weights[:, 1],
    "weight_vision": weights[:, 2],
    "log_weight_ratio": vision - language,
    "margin_language": right - language,
    "margin_vision": right - vision,
    "accuracy_language": right > language,
    "accuracy_vision": right > vision,
  }
  of_vision = {name for name in numbers if name.endswith(("vision", "ratio"))}
  known = {
    name: jnp.where(seen, x, jnp.nan) if name in of_vision else x
    for name, x in numbers.items()
  }
  # Twins carry nothing of their own.
  both = jnp.stack([loss, jnp.zeros_like(loss)], axis=-1).reshape(-1)
  return Measured(
    both,
    {
      name: jnp.stack([x, jnp.full(x.shape, jnp.nan)], axis=-1).reshape(-1)
      for name, x in known.items()
    }
    | {"pictured": jnp.repeat(seen, 2)},
  )
