"""Our side of the comparison with TRL and verl: the same inputs, our names.

`testdata/make_losses_goldens.py` has their side, case by case.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.advantages import group, reinforce, rloo
from mmrl.losses import reduce, sequence, surrogates
from mmrl.token_weights import mismatch

P, G, R = 3, 4, 6
BETA, HORIZON, GAMMA = 0.04, 7, 0.9


def make_inputs(seed: int) -> dict[str, np.ndarray]:
  """[P, G, R], [P, G]; one answer is empty and one group is all right."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, R + 1, (P, G))
  lengths[0, 0], lengths[1, 2] = R, 0
  mask = np.arange(R) < lengths[..., None]
  old = -rng.exponential(size=(P, G, R))
  rewards = rng.integers(0, 5, (P, G)) / 4
  rewards[2] = 0.5

  def shifted(by):
    return np.minimum(old + by * rng.normal(size=old.shape), 0)

  arrays = {
    # Far enough for every clip, and k3 above its bound at one token.
    "logprobs": shifted(0.7),
    "logprobs_old": old,
    "logprobs_ref": shifted(0.5),
    "logprobs_sampler": shifted(0.4),
    "rewards": rewards,
    "advantages": rng.normal(size=(P, G)),
  }
  arrays["logprobs"][0, 0, :2] = old[0, 0, :2] - 4
  arrays["logprobs_old"][0, 0, 2] = arrays["logprobs"][0, 0, 2] - 2
  arrays["advantages"][0, 0] = -abs(arrays["advantages"][0, 0])
  arrays = {
    name: np.where(mask, x, 0.0) if x.ndim == 3 else x
    for name, x in arrays.items()
  }
  return {k: x.round(3) for k, x in arrays.items()} | {"mask": mask}


CLIPS = {"clip_low": 0.2, "clip_high": 0.28}
SEQUENCE = {"clip_low": 0.1, "clip_high": 0.15}
whole_mean = functools.partial(reduce.sequence_mean, count_empty=True)
whole_sum = functools.partial(reduce.sequence_sum, count_empty=True)
REDUCTIONS = {
  "token-mean": reduce.token_mean,
  "token-sum": reduce.token_sum,
  "seq-mean-token-mean": reduce.sequence_mean,
  "seq-mean-token-sum": reduce.sequence_sum,
  "seq-mean-token-sum-norm": functools.partial(
    reduce.sequence_sum, horizon=HORIZON
  ),
}
MISMATCH = {
  "token": {},
  "sequence": {"level": "sequence", "cap": 1.5},
  "token 0.8_1.2": {"kind": "mask", "lower": 0.8, "cap": 1.2},
  "sequence 0.5_2": {"level": "sequence", "kind": "mask", "lower": 0.5},
}


def of_inputs(loss, **defaults):
  """A loss as a function of the inputs and its options."""

  def function(x, weights=None, **options):
    weights = jnp.ones_like(x["logprobs"]) if weights is None else weights
    data = (x[name] for name in ("logprobs", "logprobs_old", "advantages"))
    return loss(*data, weights, x["mask"], **defaults | options)

  return function


clipped = of_inputs(surrogates.clipped_ratio, **CLIPS)
whole = of_inputs(sequence.clipped_sequence_ratio, **SEQUENCE)
weighed = of_inputs(surrogates.clipped_weight)


def kl(x, **options):
  """`reference_kl` of the inputs."""
  return surrogates.reference_kl(
    x["logprobs"], x["logprobs_ref"], x["mask"], **options
  )


def mismatched(x, **options):
  """`sampler_mismatch` of the inputs."""
  return mismatch.sampler_mismatch(
    x["logprobs_old"], x["logprobs_sampler"], x["mask"], **options
  )


# Per case the reduction and the unreduced loss.
LOSSES = {
  "trl grpo": (whole_mean, lambda x: clipped(x) + BETA * kl(x)),
  "trl grpo delta": (
    whole_mean,
    lambda x: clipped(x, dual_clip=2.0) + BETA * kl(x),
  ),
  "trl grpo sequence": (whole_mean, lambda x: whole(x) + BETA * kl(x)),
  "trl bnpo": (reduce.token_mean, clipped),
  "trl dr_grpo": (functools.partial(whole_sum, horizon=HORIZON), clipped),
  "trl dapo": (reduce.token_mean, clipped),
  "trl dapo mismatch": (
    reduce.token_mean,
    lambda x: clipped(x, mismatched(x)) + BETA * kl(x),
  ),
  "trl luspo": (whole_sum, whole),
  "trl cispo": (reduce.token_mean, lambda x: weighed(x, weight_max=1.28)),
  "trl rloo": (whole_mean, lambda x: whole(x, length_normalize=False)),
  **{
    f"verl vanilla {name}": (reduction, lambda x: clipped(x, dual_clip=3.0))
    for name, reduction in REDUCTIONS.items()
  },
  "verl vanilla mismatch": (
    reduce.token_mean,
    lambda x: clipped(x, mismatched(x), dual_clip=3.0),
  ),
  "verl gspo": (reduce.sequence_mean, lambda x: whole(x, level="token")),
  "verl gspo token-mean": (
    reduce.token_mean,
    lambda x: whole(x, level="token"),
  ),
  "verl cispo": (
    reduce.token_mean,
    lambda x: weighed(x, weight_min=0.8, weight_max=1.28),
  ),
  **{
    f"verl kl {name}": (
      reduce.token_mean,
      lambda x, name=name: kl(
        x, estimator=name, bound=10.0 if "3" in name else None
      ),
    )
    for name in ("k1", "k2", "k3", "k1+", "k3+")
  },
}
# Values of each answer or token.
VALUES = {
  "verl grpo": lambda x: group.group_normalised(x["rewards"], epsilon=1e-6),
  "verl grpo none": lambda x: group.group_normalised(
    x["rewards"], scale="none"
  ),
  "verl rloo": lambda x: rloo.leave_one_out(
    x["rewards"], x["logprobs_old"], x["mask"], x["logprobs_ref"], beta=BETA
  ),
  "verl reinforce_plus_plus": lambda x: reinforce.reinforce_plus_plus(
    x["rewards"],
    x["logprobs_old"],
    x["mask"],
    x["logprobs_ref"],
    beta=BETA,
    gamma=GAMMA,
  ),
  "verl reinforce_plus_plus_baseline": lambda x: reinforce.reinforce_plus_plus(
    x["rewards"], x["logprobs_old"], x["mask"], baseline=True
  ),
  **{
    f"verl mismatch {name}": lambda x, options=options: mismatched(x, **options)
    for name, options in MISMATCH.items()
  },
}


@jax.jit
def compute(inputs: dict) -> dict:
  """Per case (loss, gradient), or values that are 0 on padding."""
  inputs = {
    name: jnp.asarray(x, bool if name == "mask" else jnp.float32)
    for name, x in inputs.items()
  }
  mask, results = inputs["mask"], {}
  for name, (reduction, loss) in LOSSES.items():

    def total(logprobs, reduction=reduction, loss=loss):
      values = loss(inputs | {"logprobs": logprobs})
      return reduce.total(values, reduction(mask))

    results[name] = jax.value_and_grad(total)(inputs["logprobs"])
  for name, function in VALUES.items():
    results[name] = jnp.where(mask, surrogates.per_token(function(inputs)), 0.0)
  return results


def check(found: dict, wanted: dict) -> None:
  """Ours are float32, theirs float64."""
  assert sorted(found) == sorted(wanted)
  for name, values in wanted.items():
    pairs = (
      zip(found[name], values, strict=True)
      if name in LOSSES
      else [(found[name], values)]
    )
    for ours, theirs in pairs:
      np.testing.assert_allclose(
        ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name
      )
