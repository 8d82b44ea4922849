"""Docs' walks through a new method and a new reward, as they say."""

import pathlib
import re
import types

import contract_test
import jax
import numpy as np
import pytest

from experiments import quickstart
from mmrl import rewards, token_weights
from mmrl.errors import UserError

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "add-a-method.md"


@pytest.fixture
def blocks(monkeypatch):
  """The section's blocks: module, config and row of one and of the other."""
  text = PAGE.read_text("utf-8")
  found = re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
  assert len(found) == 6
  pairs = ((token_weights, "trusted"), (rewards, "looked"))
  for (package, name), code in zip(pairs, found[::3], strict=True):
    assert len(code.splitlines()) <= 30
    module = types.ModuleType(name)
    exec(code, vars(module))
    names = [*package.__all__, name]
    monkeypatch.setattr(package, name, getattr(module, name), raising=False)
    monkeypatch.setattr(package, "__all__", names)
  return found


def test_a_config_binds_them(blocks):
  config = quickstart.get_config("ral")
  exec(blocks[1] + blocks[4], {"config": config})
  found = contract_test.build_parts(config).method
  assert found.token_weights[0].options == {"scale": 2.0}
  assert found.rewards[-1].name == "looked" and not found.rewards[-1].on_host
  assert "reference" in [probe.name for probe in found.probes]
  del config.losses["kl"]
  found = contract_test.build_parts(config).method
  assert "reference" in [probe.name for probe in found.probes]
  del config.models["reference"]
  with pytest.raises(
    UserError,
    match="trusted needs logprobs_ref.*; add a model 'reference' to config.mod",
  ):
    contract_test.build_parts(config)


@pytest.mark.parametrize("block", [2, 5])
def test_they_keep_the_contract(blocks, block):
  row = eval(
    blocks[block], {"token_weights": token_weights, "rewards": rewards}
  )
  assert not contract_test.reads_texts(row)
  case = contract_test.array_case(row)
  one, two = (
    jax.device_get(case.function(x)) for x in (case.inputs, case.spoiled())
  )
  np.testing.assert_array_equal(one, two)
  assert ((one >= 0) & (one <= 1)).all()
  mask = np.asarray(case.inputs["data"]["mask"])
  mask = mask if one.ndim == 3 else mask.any(-1)
  assert (one[mask] > 0).any() and (one[mask] < 1).any()
  assert (one[~mask] == 0).all()


ROOT = PAGE.parents[1]


def test_the_readme_is_short():
  text = (ROOT / "README.md").read_text("utf-8")
  assert len(text.splitlines()) <= 200
  assert len(text.split()) <= 1200


def test_links_lead_somewhere():
  pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
  assert len(pages) > 10
  for page in pages:
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
      assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_config_of_experiments_is_named():
  named = (ROOT / "README.md").read_text("utf-8")
  named += (ROOT / "docs" / "methods.md").read_text("utf-8")
  for path in (ROOT / "experiments").glob("*.py"):
    if "def get_config" in path.read_text("utf-8"):
      assert f"`{path.stem}" in named, path.stem
