"""Our side of the comparison of preference losses with TRL.

`testdata/make_preferences_goldens.py` has its side, case by case.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.losses import preference

P, R = 6, 5
BETA, SMOOTHING, MARGIN = 0.3, 0.2, 0.5


def make_inputs(seed: int) -> dict[str, np.ndarray]:
  """[P, 2, R]: pairs of answers of one to R tokens, the chosen one first."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, R + 1, (P, 2))
  mask = np.arange(R) < lengths[..., None]
  reference = -rng.exponential(size=(P, 2, R))
  logprobs = np.minimum(reference + rng.normal(size=reference.shape), 0)
  arrays = {"logprobs": logprobs, "logprobs_ref": reference}
  return {k: np.where(mask, x, 0).round(3) for k, x in arrays.items()} | {
    "mask": mask
  }


def dpo(x, **options):
  chosen = jnp.tile(jnp.array([[True, False]]), (P, 1))
  data = x["logprobs"], x["logprobs_ref"], chosen, x["mask"]
  return preference.dpo(*data, beta=BETA, **options)


def simpo(x, **options):
  chosen = jnp.tile(jnp.array([[True, False]]), (P, 1))
  data = x["logprobs"], chosen, x["mask"]
  return preference.simpo(*data, beta=BETA, margin=MARGIN, **options)


LOSSES = {
  "sigmoid": dpo,
  "sigmoid_norm": lambda x: dpo(x, tokens="mean"),
  "hinge": lambda x: dpo(x, kind="hinge"),
  "ipo": lambda x: dpo(x, kind="ipo"),
  "robust": lambda x: dpo(x, kind="robust", label_smoothing=SMOOTHING),
  # TRL's DPOTrainer has no smoothed sigmoid any more; its CPOTrainer has.
  "smoothed": lambda x: dpo(x, label_smoothing=SMOOTHING),
  "simpo": simpo,
  "simpo smoothed": lambda x: simpo(x, label_smoothing=SMOOTHING),
}


@jax.jit
def compute(inputs: dict) -> dict:
  """Per case the mean loss and its gradient."""
  inputs = {
    name: jnp.asarray(x, bool if name == "mask" else jnp.float32)
    for name, x in inputs.items()
  }

  def mean(loss):
    return lambda logprobs: loss(inputs | {"logprobs": logprobs}).values.mean()

  return {
    name: jax.value_and_grad(mean(loss))(inputs["logprobs"])
    for name, loss in LOSSES.items()
  }


def check(found: dict, wanted: dict) -> None:
  """Ours are float32, theirs float64."""
  assert sorted(found) == sorted(wanted)
  for name, values in wanted.items():
    for ours, theirs in zip(found[name], values, strict=True):
      np.testing.assert_allclose(
        ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name
      )
