"""Which minibatches have nothing to say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import losses
from mmrl.losses import reduce, signal

P, G, R = 2, 3, 4
MASK = np.ones((P, G, R), bool)
MASK[0, 0, 2:] = False
RANDOM = np.random.default_rng(0)
LOGPROBS = RANDOM.normal(-2, 1, (P, G, R)).astype(np.float32)
ONE_BETTER = np.zeros((P, G), np.float32)
ONE_BETTER[1, 1] = 1e-6


def is_silent(function, needs, context, dtype="float32", **options):
  found = measure(function, tuple(needs), dtype, **options)(context)
  return bool(found)


@functools.cache
def measure(function, needs, dtype, **options):
  """A program for all values of a function's data."""

  @jax.jit
  def silent(context):
    coefficients = reduce.token_mean(jnp.asarray(MASK))

    def total(scores):
      known = context | scores
      values = function(**{name: known[name] for name in needs}, **options)
      return reduce.total(values, coefficients)

    sums = signal.squares(total, context, needs, coefficients)
    return signal.silent(sums, signal.tolerance(needs, dtype))

  return silent


@pytest.mark.parametrize(
  ("advantages", "silent"),
  [(np.zeros((P, G), np.float32), True), (ONE_BETTER, False)],
)
@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("clipped_ratio", {}),
    ("clipped_weight", {}),
    ("policy_gradient", {}),
    ("clipped_sequence_ratio", {}),
    ("expert_shaped", {}),
  ],
)
def test_a_term_with_advantages(name, options, advantages, silent):
  """Any that isn't 0 is a signal; log-ratios are nothing but rounding."""
  needs = ["logprobs", "logprobs_old", "advantages", "token_weights", "mask"]
  if name == "policy_gradient":
    needs.remove("logprobs_old")
  context = {
    "logprobs": jnp.asarray(LOGPROBS),
    "logprobs_old": jnp.asarray(LOGPROBS * (1 + 2e-7)),
    "advantages": jnp.asarray(advantages),
    "token_weights": jnp.ones((P, G, R)),
    "mask": jnp.asarray(MASK),
  }
  found = is_silent(getattr(losses, name), needs, context, **options)
  assert found == silent


def test_attention_counts_by_its_advantages():
  needs = ["attention", "attention_old", "advantages", "mask"]
  assert not signal.measurable(needs)
  needs.append("attention_moved")
  assert signal.measurable(needs)
  rows = jnp.ones((P, G, R, 5)) / 5
  context = {
    "attention": rows,
    "attention_old": rows,
    "attention_moved": jnp.zeros((P, G, R)),
    "mask": jnp.asarray(MASK),
  }
  for advantages, silent in ((np.zeros((P, G)), True), (ONE_BETTER, False)):
    known = context | {"advantages": jnp.asarray(advantages, jnp.float32)}
    assert is_silent(losses.attention_jsd, needs, known) == silent


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k1+", "k3+"])
@pytest.mark.parametrize(
  ("distance", "dtype", "silent"),
  [
    (0.0, "float32", True),
    (2e-6, "float32", True),  # what two programs differ by
    (1e-3, "float32", False),
    (1e-2, "bfloat16", True),
    (1e-1, "bfloat16", False),
  ],
)
def test_the_kl_to_the_reference(estimator, distance, dtype, silent):
  """k1's slope is 1, wherever the policies are."""
  noise = distance * RANDOM.choice([-1.0, 1.0], (P, G, R))
  needs = ["logprobs", "logprobs_ref", "mask"]
  context = {
    "logprobs": jnp.asarray(LOGPROBS),
    "logprobs_ref": jnp.asarray(LOGPROBS + noise, jnp.float32),
    "mask": jnp.asarray(MASK),
  }
  found = is_silent(
    losses.reference_kl, needs, context, dtype, estimator=estimator
  )
  assert found == (silent and estimator != "k1")


def test_what_compares_answers_is_no_silence():
  """Slopes of opposite signs don't cancel."""

  def preference(logprobs, mask):
    total = jnp.where(mask, logprobs, 0.0).sum(-1)
    return jnp.broadcast_to(
      (total[:, 0] - total[:, 1])[:, None, None], mask.shape
    )

  context = {"logprobs": jnp.asarray(LOGPROBS), "mask": jnp.asarray(MASK)}
  assert not is_silent(preference, ["logprobs", "mask"], context)


def test_a_minibatch_without_tokens_is_silent_and_nan_is_not():
  assert signal.silent(jnp.zeros(2), 0.0)
  assert not signal.silent(jnp.asarray([jnp.nan, 1.0]), 1.0)
  for name in ("logits", "learned", "params", "forward", "attention"):
    assert not signal.measurable(["logprobs", name])
  assert signal.measurable(["logprobs", "params_reference", "running"])
