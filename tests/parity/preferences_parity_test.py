"""Live comparison of preference losses with TRL, on further random pairs.

Needs TRL 1.16 (the extra `peers`); `tests/losses/preference_test.py` compares
with numbers that it wrote.
"""

import importlib.util

import jax
import pytest

pytest.importorskip("torch")

from losses import preferences
from testdata import make_preferences_goldens as theirs

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", range(1, 6))
def test_losses(seed):
  if importlib.util.find_spec("trl") is None:
    pytest.skip("trl isn't installed")
  inputs = preferences.make_inputs(seed)
  found = jax.device_get(preferences.compute(inputs))
  preferences.check(found, theirs.trl_results(inputs))
