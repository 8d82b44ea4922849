"""Adapters: PEFT computes with ours what we do, and we with its.

Each time against the base as well: an adapter whose names fit nothing loads
with a warning, and changes nothing.
"""

import dataclasses
import functools
import warnings

import jax
import numpy as np
import pytest
import small_models

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from mmrl import hub, models
from mmrl.hub import adapters, directory
from mmrl.models import parameters
from mmrl.models.config import Lora
from mmrl.models.families import FAMILIES
from parity import oracle

pytestmark = pytest.mark.parity
# Of logits, as without an adapter (transformers_test).
SAME, OTHER = 1e-4, 0.1
CHATS = small_models.conversations()
TARGETS = {
  "decoder": "text/.*",
  "tower": "vision/.*",
  "both": ".*",
  "some": "text/layers/(k|mlp/down)|vision/blocks/qkv",
}
# What PEFT writes into target_modules, or keeps of it.
THEIRS = {
  "names": {"target_modules": ["q_proj", "v_proj", "o_proj"]},
  "regex": {"target_modules": r".*language_model.*\.(up|gate)_proj"},
  "all": {"target_modules": "all-linear"},
  "all but the tower": {
    "target_modules": "all-linear",
    "exclude_modules": r".*visual.*",
  },
}


@pytest.fixture(params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(params=[False, True], ids=["lora", "rslora"])
def rs(request):
  return request.param


@functools.cache
def base(family: str) -> hub.Model:
  return small_models.make_model(small_models.small_config(family=family))


@functools.cache
def inputs(family: str) -> dict:
  return oracle.make_inputs(base(family).processor, CHATS)


@functools.partial(jax.jit, static_argnums=1)
def apply(params, config, prompt):
  return models.apply(params, config, prompt).logits


def ours(family: str, params, config) -> np.ndarray:
  """Logits of real tokens."""
  prompt = base(family).processor(CHATS)
  found = apply(params, config, small_models.on_device(prompt))
  return np.asarray(found)[np.asarray(prompt.mask)]


def theirs(family: str, model) -> np.ndarray:
  given = inputs(family)
  with torch.no_grad():
    logits = model(**given).logits.numpy()
  return logits[given["attention_mask"].bool().numpy()]


def check(one, other, of_base):
  np.testing.assert_allclose(one, other, rtol=0, atol=SAME)
  assert np.abs(one - of_base).max() > OTHER


@pytest.mark.parametrize("targets", TARGETS)
def test_written_here_computes_there(family, targets, rs, tmp_path):
  model = base(family)
  lora = Lora(rank=3, alpha=7, targets=TARGETS[targets], rs=rs)
  config = dataclasses.replace(model.config, lora=lora)
  pairs = parameters.init_adapter(jax.random.key(0), config)
  pairs = {
    path: jax.random.normal(jax.random.key(1), leaf.shape) / 10
    if path.endswith("/lora_b")
    else leaf
    for path, leaf in pairs.items()
  }
  params = parameters.merge(parameters.flat(model.params), pairs)
  adapters.save(parameters.flat(params), config, tmp_path / "adapter", "base")
  wanted = ours(family, params, config)
  of_base = ours(family, model.params, model.config)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message="Found missing adapter keys")
    loaded = peft.PeftModel.from_pretrained(
      oracle.make_torch(model.config), tmp_path / "adapter"
    )
  check(theirs(family, loaded), wanted, of_base)
  # Merged, by either.
  merged = loaded.merge_and_unload()
  check(theirs(family, merged), wanted, of_base)
  hub.save(dataclasses.replace(model, config=config, params=params), tmp_path)
  whole = hub.load(tmp_path)
  check(ours(family, whole.params, whole.config), wanted, of_base)


@pytest.mark.parametrize("targets", THEIRS)
def test_written_there_computes_here(family, targets, rs, tmp_path):
  model = base(family)
  config = peft.LoraConfig(
    r=4,
    lora_alpha=2,
    use_rslora=rs,
    lora_dropout=0.05,
    init_lora_weights=False,
    **THEIRS[targets],
  )
  torch.manual_seed(0)
  made = peft.get_peft_model(oracle.make_torch(model.config), config)
  made.peft_config["default"].base_model_name_or_path = "models/base"
  made.eval().save_pretrained(tmp_path)
  found = directory.with_adapter(model.config, "base", tmp_path)
  pairs = adapters.load(tmp_path, found)
  params = parameters.merge(parameters.flat(model.params), pairs)
  check(
    ours(family, params, found),
    theirs(family, made),
    ours(family, model.params, model.config),
  )
