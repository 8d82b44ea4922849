"""The model against numbers that Transformers computed.

testdata/make_transformers_goldens.py made them; tests/parity compares live.
"""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_models

from mmrl import models
from mmrl.hub import config_json, weights

TESTDATA = pathlib.Path(__file__).parents[1] / "testdata"


@pytest.fixture(scope="module", params=small_models.golden_cases())
def case(request, tmp_path_factory):
  """The golden numbers, our prompt, and our output for it."""
  config, conversations = small_models.golden_cases()[request.param]
  with np.load(TESTDATA / f"transformers_{request.param}.npz") as file:
    golden = dict(file)
  # The directory holds Transformers' own config.json and tensor names.
  path = tmp_path_factory.mktemp("model")
  (path / "config.json").write_text(str(golden["config"]))
  tensors = small_models.weights(config)
  safetensors.numpy.save_file(tensors, path / "model.safetensors")
  config = config_json.read(path)
  params = weights.load_params(path, config)
  prompt = small_models.make_processor(config)(conversations)
  output = jax.jit(models.apply, static_argnums=1, static_argnames="attention")(
    params, config, prompt, attention="all"
  )
  # Both pad on the left; ours to a multiple of 32.
  count = golden["tokens"].shape[1]
  return golden, prompt, jax.tree.map(np.asarray, output), count


@pytest.mark.parametrize("name", small_models.golden_cases())
def test_config_is_read(name, tmp_path):
  """Transformers wrote the file; what it means must not be lost."""
  config, _ = small_models.golden_cases()[name]
  with np.load(TESTDATA / f"transformers_{name}.npz") as file:
    (tmp_path / "config.json").write_text(str(file["config"]))
  assert config_json.read(tmp_path) == config


def test_tokens_positions_and_pixels(case):
  golden, prompt, _, count = case
  mask = golden["mask"]
  np.testing.assert_array_equal(prompt.mask[:, -count:], mask)
  assert not prompt.mask[:, :-count].any()
  np.testing.assert_array_equal(
    prompt.tokens[:, -count:][mask], golden["tokens"][mask]
  )
  np.testing.assert_array_equal(
    prompt.positions[:, -count:][mask], golden["positions"][mask]
  )
  np.testing.assert_array_equal(
    prompt.next_position - mask.sum(1), golden["deltas"]
  )
  total = np.float64(prompt.patches.pixels).sum()
  np.testing.assert_allclose(total, golden["pixel_sum"], rtol=1e-6)


def test_logits(case):
  golden, _, output, count = case
  rows = golden["rows"]
  real = golden["mask"][:, rows]
  ours = output.logits[:, -count:][:, rows]
  np.testing.assert_allclose(ours[real], golden["logits"][real], atol=1e-4)


def test_attention_of_every_layer(case):
  golden, _, output, count = case
  rows = golden["rows"]
  ours = output.attention[..., -count:, -count:][..., rows, :]
  real = golden["mask"][:, rows]
  # Padding first: [P, rows, L, H, S].
  ours, theirs = (
    np.moveaxis(x, (1, 3), (0, 1))[real] for x in (ours, golden["attention"])
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
