"""The README's walk through a new method, done as it says."""

import pathlib
import re
import types

import contract_test
import jax
import numpy as np
import pytest

from experiments import quickstart
from mmrl import token_weights
from mmrl.errors import UserError
from mmrl.train import method

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.fixture
def blocks(monkeypatch):
  """The three blocks of the section, the first of them in the package."""
  text = README.read_text("utf-8").split("\n## Add a method\n")[1]
  found = re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
  assert len(found) == 3
  assert len(found[0].splitlines()) <= 30
  module = types.ModuleType("trusted")
  exec(found[0], vars(module))
  names = [*token_weights.__all__, "trusted"]
  monkeypatch.setattr(token_weights, "trusted", module.trusted, raising=False)
  monkeypatch.setattr(token_weights, "__all__", names)
  return found


def test_new_method_is_bound_by_a_config(blocks):
  config = quickstart.get_config("ral")
  exec(blocks[1], {"config": config})
  (weight,) = method.bind(config).token_weights
  assert weight.options == {"scale": 2.0}
  del config.probes["reference"], config.losses["kl"]
  with pytest.raises(
    UserError, match="trusted needs logprobs_ref.*; add probe"
  ):
    method.bind(config)


def test_new_method_keeps_the_contract(blocks):
  row = eval(blocks[2], {"token_weights": token_weights})
  case = contract_test.array_case(row)
  one, two = (
    jax.device_get(case.function(x)) for x in (case.inputs, case.spoiled())
  )
  np.testing.assert_array_equal(one, two)
  mask = np.asarray(case.inputs["data"]["mask"])
  assert ((one[mask] > 0) & (one[mask] <= 1)).all()
  assert (one[mask] < 1).any()
  assert (one[~mask] == 0).all()
