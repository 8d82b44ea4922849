"""Live comparison of the distillation term with TRL's GKDTrainer.

Needs TRL 1.16, the extra `peers`; without it this is skipped, and
`tests/losses/distillation_test.py` compares with numbers that it wrote.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from trl.experimental.gkd import GKDTrainer

from mmrl.losses import distillation, reduce
from mmrl.models import vocabulary
from mmrl.types import Logits

pytestmark = pytest.mark.parity

P, G, R, V = 3, 2, 5, 301
WIDTHS = 16, 24


@pytest.fixture(scope="module")
def arrays():
  """Hidden states and heads of both, in float32, and a mask.

  Logits are of deviation 2: those of log-ratios in the tens are rounded, in
  float32, to more than the tolerance of the gradients.
  """
  rng = np.random.default_rng(0)
  made = [
    rng.normal(0, scale, shape).astype(np.float32)
    for width in WIDTHS
    for shape, scale in (((P, G, R, width), 1), ((V, width), 2 / width**0.5))
  ]
  lengths = rng.integers(1, R + 1, (P, G, 1))
  return made, np.arange(R) < lengths


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_loss_and_gradients(arrays, monkeypatch, beta, temperature):
  """Their mean over tokens, and what reaches hidden states and head."""
  made, mask = arrays
  seen = jnp.asarray(mask)
  options = {"beta": beta, "temperature": temperature}
  hidden, head, *teacher = (torch.tensor(x, dtype=torch.float64) for x in made)
  hidden.requires_grad_()
  head.requires_grad_()
  labels = torch.where(torch.tensor(mask.reshape(P * G, R)), 0, -100)
  logits, of_teacher = (
    (x @ y.T).reshape(P * G, R, V) for x, y in ((hidden, head), teacher)
  )
  wanted = GKDTrainer.generalized_jsd_loss(
    logits, of_teacher, labels, **options
  )
  wanted.backward()

  # Parts of 64 entries.
  monkeypatch.setattr(vocabulary, "_CHUNK_VALUES", 64 * 2 * mask.size)
  monkeypatch.setattr(vocabulary, "_LEAST_ENTRIES", 1)
  student, other = (
    Logits(jnp.asarray(x), jnp.asarray(y), "vd", (), 1.0)
    for x, y in (made[:2], made[2:])
  )

  @jax.jit
  @jax.value_and_grad
  def loss(student):
    values = distillation.distillation_kl(student, other, seen, **options)
    return reduce.total(values, reduce.token_mean(seen))

  value, gradient = loss(student)
  np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
  for found, theirs in ((gradient.hidden, hidden), (gradient.head, head)):
    np.testing.assert_allclose(found, theirs.grad, rtol=1e-4, atol=1e-6)
