"""Losses, reductions and advantages against numbers of TRL and verl.

testdata/make_losses_goldens.py made them; tests/parity compares live.
"""

import pathlib

import jax
import numpy as np
import pytest

from losses import libraries

PATH = pathlib.Path(__file__).parents[1] / "testdata" / "losses.npz"


@pytest.fixture(scope="module")
def golden():
  """Inputs and results of the file."""
  inputs, results = {}, {}
  with np.load(PATH) as file:
    for key, value in file.items():
      kind, _, name = key.partition(": ")
      if kind == "input":
        inputs[name] = value
      elif kind == "gradient":
        results[name] = file[f"loss: {name}"], value
      elif kind == "values":
        results[name] = value
  return inputs, results


@pytest.fixture(scope="module")
def found(golden):
  return jax.device_get(libraries.compute(golden[0]))


@pytest.mark.parametrize("name", [*libraries.LOSSES, *libraries.VALUES])
def test_goldens(golden, found, name):
  _, results = golden
  libraries.check({name: found[name]}, {name: results[name]})


def test_every_golden_is_compared(golden, found):
  assert sorted(golden[1]) == sorted(found)


def test_inputs_reach_every_clip(golden):
  inputs, _ = golden
  mask = inputs["mask"]
  ratio = np.exp(inputs["logprobs"] - inputs["logprobs_old"])
  negative = mask & (inputs["advantages"] < 0)[..., None]
  positive = mask & (inputs["advantages"] > 0)[..., None]
  assert (ratio[negative] > 3).any() and (ratio[negative] < 0.8).any()
  assert (ratio[positive] > 1.28).any() and (ratio[positive] < 0.8).any()
  k = inputs["logprobs_ref"] - inputs["logprobs"]
  assert (np.exp(k[mask]) - k[mask] - 1 > 10).any()
  assert (mask.sum(-1) == 0).any()
