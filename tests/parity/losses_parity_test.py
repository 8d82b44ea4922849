"""Live comparison of losses, reductions and advantages with TRL and verl.

Needs TRL 1.16 (the extra `peers`), and verl 0.9.1 without its dependencies
(`pip install --no-deps verl==0.9.1`); what isn't there is skipped, and
`tests/losses/libraries_test.py` compares with numbers that they wrote.
"""

import importlib.util

import jax
import pytest

pytest.importorskip("torch")

from losses import libraries
from testdata import make_losses_goldens as theirs

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("library", ["trl", "verl"])
def test_losses(library, seed):
  if importlib.util.find_spec(library) is None:
    pytest.skip(f"{library} isn't installed")
  inputs = libraries.make_inputs(seed)
  results = {"trl": theirs.trl_results, "verl": theirs.verl_results}[library]
  found = jax.device_get(libraries.compute(inputs))
  ours = {k: v for k, v in found.items() if k.startswith(f"{library} ")}
  libraries.check(ours, results(inputs))
