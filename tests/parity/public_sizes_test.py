"""The published models' tensors, by name and shape; nothing is allocated."""

import pathlib
import shutil

import pytest

torch = pytest.importorskip("torch")

import transformers

from mmrl import hub
from mmrl.hub import config_json, tensors

pytestmark = pytest.mark.parity

CONFIGS = pathlib.Path(hub.__file__).parent / "public"


@pytest.mark.parametrize(
  "file",
  sorted(CONFIGS.glob("*/config.json")),
  ids=lambda file: file.parent.name,
)
def test_tensors(file, tmp_path):
  """Those that Transformers' model has, for the same config.json."""
  shutil.copy(file, tmp_path / "config.json")
  config = config_json.read(tmp_path)
  with torch.device("meta"):
    theirs = transformers.AutoModelForImageTextToText.from_config(
      transformers.AutoConfig.from_pretrained(tmp_path)
    )
  wanted = {
    tensors.canonical(name): tuple(tensor.shape)
    for name, tensor in theirs.state_dict().items()
  }
  if config.tie_word_embeddings:
    del wanted["lm_head.weight"]
  found = {
    tensors.canonical(name): tensor.shape
    for name, tensor in tensors.of_model(config).items()
  }
  assert found == wanted
