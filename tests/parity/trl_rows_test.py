"""Rows of TRL: the messages that TRL itself makes of them."""

import io
import json
import random

from PIL import Image
import pytest

pytest.importorskip("trl")

from trl import data_utils

from mmrl import data
from mmrl.errors import UserError

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("trl")
  for name in "abcd":
    Image.new("RGB", (4, 3)).save(folder / f"{name}.png")
  return folder


def message(draw, role):
  """A message: a text, or parts with and without a picture of their own."""
  if draw.random() < 0.5:
    return {"role": role, "content": f"{role} {draw.random()}"}
  parts = [{"type": "text", "text": f"{draw.random()}"}]
  for _ in range(draw.randrange(3)):
    part = {"type": "image"}
    if draw.random() < 0.3:
      part["image"] = f"{draw.choice('abcd')}.png"
    parts.insert(draw.randrange(len(parts) + 1), part)
  return {"role": role, "content": parts}


def row(draw):
  roles = ["system"] * draw.randrange(2)
  roles += ["user", "assistant"] * draw.randrange(3) + ["user"]
  prompt = [message(draw, role) for role in roles]
  images = [f"{draw.choice('abcd')}.png" for _ in range(draw.randrange(4))]
  if draw.random() < 0.5:  # As many as there are places, if all are parts.
    places = sum(
      "image" not in part and part["type"] == "image"
      for m in prompt
      if isinstance(m["content"], list)
      for part in m["content"]
    )
    images = [f"{draw.choice('abcd')}.png" for _ in range(places)]
  return {"prompt": prompt, "images": images, "solution": "x"}


def test_messages_are_those_of_trl(folder):
  draw = random.Random(0)
  path, equal, refused = folder / "rows.jsonl", 0, 0
  for _ in range(2000):
    one = row(draw)
    path.write_text(json.dumps(one))
    try:
      expected = data_utils.prepare_multimodal_messages(
        one["prompt"], one["images"]
      )
    except ValueError:
      with pytest.raises(UserError, match="as many marks <image>"):
        data.Files(str(path))
      refused += 1
      continue
    text = json.dumps(expected).replace('"image": "', f'"image": "{folder}/')
    (example,) = data.Files(str(path))
    assert example.messages == json.loads(text)
    equal += 1
  assert min(equal, refused) > 300


def test_datasets_own_files(folder, monkeypatch):
  """`datasets` takes a local folder for a data set of the hub."""
  datasets, name = pytest.importorskip("datasets"), "owner/name"
  monkeypatch.chdir(folder)
  monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
  rows = {
    "problem": ["<image>what?", "and?"],
    "answer": ["red", "3"],
    "images": [[Image.new("RGB", (4, 3))], []],
  }
  features = datasets.Features(
    problem=datasets.Value("string"),
    answer=datasets.Value("string"),
    images=datasets.Sequence(datasets.Image()),
  )
  made = datasets.Dataset.from_dict(rows, features=features)
  (folder / name).mkdir(parents=True)
  made.to_parquet(folder / name / "train.parquet")
  for path in (f"hub:{name}", f"{name}/train.parquet"):
    one, two = data.Files(path)
    assert Image.open(io.BytesIO(one.picture["image"])).size == (4, 3)
    assert two.picture is None and two.answer == "3"
