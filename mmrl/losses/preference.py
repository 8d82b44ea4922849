"""Preference losses: of two answers to a prompt, one is to become likelier.

Both are terms of a prompt [P], reduced by `prompt_mean`, minimised.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.errors import UserError
from mmrl.losses import surrogates
from mmrl.losses.state import Measured


def check_beta(beta: float) -> None:
  """Raises UserError if the scale of a preference isn't above 0."""
  if not beta > 0:
    raise UserError(f"beta must be above 0, got {beta}")


def answer_logprob(
  logprobs: Float[Array, "P G R"], mask: Bool[Array, "P G R"], tokens: str
) -> Float[Array, "P G"]:
  """Computes the "sum" or "mean" of each answer's token log-probabilities."""
  total = jnp.where(mask, surrogates.upcast(logprobs), 0.0).sum(-1)
  return total / jnp.maximum(mask.sum(-1), 1) if tokens == "mean" else total


def split_pair(
  values: Float[Array, "P G"], chosen: Bool[Array, "P G"]
) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
  """Returns the values of the chosen answers, and of the others.

  Raises:
    UserError: if there aren't two answers to a prompt.
  """
  if values.shape[1] != 2:
    raise UserError(
      f"a preference needs 2 answers per prompt, got {values.shape[1]}"
    )
  first, second = values[:, 0], values[:, 1]
  return (
    jnp.where(chosen[:, 0], first, second),
    jnp.where(chosen[:, 0], second, first),
  )


def _check_smoothing(label_smoothing: float) -> None:
  if not 0 <= label_smoothing < 0.5:
    raise UserError(
      f"label_smoothing must be in [0, 0.5), got {label_smoothing}"
    )


def _smoothed(
  margin: Float[Array, "P"], label_smoothing: float
) -> Float[Array, "P"]:
  """Computes -(1 - e) ln sigmoid(margin) - e ln sigmoid(-margin)."""
  right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
  return (1 - label_smoothing) * right + label_smoothing * wrong


def _measured(
  loss: Float[Array, "P"],
  margin: Float[Array, "P"],
  logprobs: Float[Array, "P G"],
  chosen: Bool[Array, "P G"],
) -> Measured:
  of_chosen, of_rejected = split_pair(logprobs, chosen)
  numbers = {
    "margin": margin,
    "accuracy": margin > 0,
    "logprob_chosen": of_chosen,
    "logprob_rejected": of_rejected,
  }
  return Measured(loss, numbers)


def dpo(
  logprobs: Float[Array, "P G R"],
  logprobs_ref: Float[Array, "P G R"],
  chosen: Bool[Array, "P G"],
  mask: Bool[Array, "P G R"],
  *,
  kind: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid",
  beta: float = 0.1,
  label_smoothing: float = 0.0,
  tokens: Literal["usual", "sum", "mean"] = "usual",
) -> Measured:
  """Computes DPO's loss of each pair, or one of its kin.

      d = s(chosen) - s(rejected),    s = sum_t (ln pi_t - ln pi_ref_t)
      sigmoid  -(1 - e) ln sigmoid(beta d) - e ln sigmoid(-beta d)
      robust   (-(1 - e) ln sigmoid(beta d) + e ln sigmoid(-beta d)) / (1 - 2 e)
      hinge    max(0, 1 - beta d)
      ipo      (d - 1 / (2 beta))^2

  Args:
    logprobs: of the current policy; the only argument with a gradient.
    logprobs_ref: of the frozen reference.
    chosen: True on the preferred answer of each pair.
    mask: True on answer tokens.
    kind: of loss.
    beta: above 0: how far the policy may go from the reference, less far the
      larger it is. IPO's tau.
    label_smoothing: e, the probability that a label is wrong, in [0, 0.5); of
      sigmoid (conservative DPO) and robust.
    tokens: whether s is a "sum" or a "mean" over the tokens of an answer.
      "usual" is TRL's: the mean for ipo, the sum for all others.

  Returns:
    The unreduced loss. Numbers to log are the margin beta d, its accuracy (the
    share above 0), and the log-probabilities of both answers.

  Raises:
    UserError: if an option is outside its range or isn't one of the kind, or
      there aren't two answers.

  Reference: DPO arXiv 2305.18290 eq. 7, and its appendix on noisy labels; IPO
  2310.12036 eq. 17; hinge (SLiC) 2305.10425; robust DPO 2403.00409.
  Differs from the paper: IPO's sum is a mean, as its authors had it, so that
  the loss doesn't grow with the answers.
  """
  check_beta(beta)
  _check_smoothing(label_smoothing)
  if label_smoothing and kind not in ("sigmoid", "robust"):
    raise UserError(
      f"label_smoothing must be 0 for kind {kind!r}, got {label_smoothing}"
    )
  if tokens == "usual":
    tokens = "mean" if kind == "ipo" else "sum"
  own = answer_logprob(logprobs, mask, tokens)
  of_chosen, of_rejected = split_pair(
    own - answer_logprob(logprobs_ref, mask, tokens), chosen
  )
  difference = of_chosen - of_rejected
  margin = beta * difference
  if kind == "ipo":
    loss = (difference - 1 / (2 * beta)) ** 2
  elif kind == "hinge":
    loss = jax.nn.relu(1 - margin)
  elif kind == "robust":
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    loss = label_smoothing * wrong - (1 - label_smoothing) * right
    loss /= 1 - 2 * label_smoothing
  else:
    loss = _smoothed(margin, label_smoothing)
  return _measured(loss, margin, own, chosen)


def simpo(
  logprobs: Float[Array, "P G R"],
  chosen: Bool[Array, "P G"],
  mask: Bool[Array, "P G R"],
  *,
  beta: float = 2.0,
  margin: float = 0.5,
  label_smoothing: float = 0.0,
) -> Measured:
  """Computes SimPO's loss of each pair, which has no reference.

      d = mean_t ln pi(chosen) - mean_t ln pi(rejected)
      loss = -ln sigmoid(beta d - margin)

  Args:
    logprobs: of the current policy.
    chosen: True on the preferred answer of each pair.
    mask: True on answer tokens.
    beta: above 0.
    margin: gamma, by which the chosen answer is to be ahead; at least 0.
    label_smoothing: e, the probability that a label is wrong, in [0, 0.5).

  Returns:
    The unreduced loss. Numbers to log are beta d, its accuracy (the share above
    0), and the mean log-probabilities of both answers.

  Raises:
    UserError: if an option is outside its range, or there aren't two answers.

  Reference: arXiv 2405.14734 eq. 6; 2.0 and 0.5 are of its published code.
  """
  check_beta(beta)
  _check_smoothing(label_smoothing)
  if not margin >= 0:
    raise UserError(f"margin must be at least 0, got {margin}")
  own = answer_logprob(logprobs, mask, "mean")
  of_chosen, of_rejected = split_pair(own, chosen)
  ahead = beta * (of_chosen - of_rejected)
  return _measured(
    _smoothed(ahead - margin, label_smoothing), ahead, own, chosen
  )
