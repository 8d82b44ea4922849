"""Questions about pictures of one's own, from masks to the benchmark."""

import json
import re

import numpy as np
from PIL import Image
import pytest

from experiments import causal_pictures
from mmrl import data
from mmrl.errors import UserError

NAMES = [f"thing {i}" for i in range(14)]


@pytest.fixture
def annotations(tmp_path):
  """Two classes in each picture; thing 0 and thing 1 are together twice."""
  rows = []
  for i, pair in enumerate([(0, 1), (0, 1), (2, 3), (4, 5), *[(6, 7), (8, 9)]]):
    Image.new("RGB", (40, 30), (9 * i, 0, 0)).save(tmp_path / f"p{i}.png")
    objects = []
    for j, name in enumerate(pair):
      mask = np.zeros((30, 40), np.uint8)
      mask[10:14, 30 * j : 30 * j + 4] = 255
      Image.fromarray(mask).save(tmp_path / f"p{i}_{j}.png")
      objects.append({"name": NAMES[name], "mask": f"p{i}_{j}.png"})
    rows.append({"image": f"p{i}.png", "objects": objects})
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def test_from_masks_to_a_benchmark(annotations, tmp_path):
  first, last = tmp_path / "first", tmp_path / "last"
  assert causal_pictures.select(str(annotations), first, seed=0) == 12
  samples = [
    json.loads(x) for x in (first / "samples.jsonl").read_text().splitlines()
  ]
  assert (
    samples[0]["target"] == "thing 0" and samples[0]["context"] == "thing 1"
  )
  assert not {"thing 0", "thing 1"} & set(samples[0]["candidates"])
  mask = np.asarray(Image.open(first / "masks" / "0.png")) > 0
  # 4 pixels and 20 around, at the left and upper edges less; what stays isn't.
  assert mask.sum() == 30 * 24 and not mask[12, 32]
  filled = tmp_path / "filled.jsonl"
  rows = [
    {"sample": i, "reply": reply, "image": "p5.png"}
    for i, reply in enumerate([samples[0]["candidates"][3].upper(), "none"])
  ]
  filled.write_text("\n".join(map(json.dumps, rows)))
  found = causal_pictures.questions(
    str(first / "samples.jsonl"), str(filled), last, 0
  )
  assert found == (1, 1)
  source = data.CausalHalBench(str(last / "questions.json"), media=str(last))
  assert [one.answer for one in (source[i] for i in range(7))] == [
    *("yes", "no", "no", "yes", "no", "no", "yes")
  ]
  assert source[0].question == "Is there a thing 1 in the image?"
  assert samples[0]["candidates"][3] in source[6].question


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"image": "p0.png"}, "a.jsonl:1: expected 'objects', found"),
    (
      {"image": "p0.png", "objects": [], "boxes": []},
      "no other keys than image, objects, found 'boxes'",
    ),
    (
      {"image": "p0.png", "objects": [{"name": "a", "mask": "none.png"}] * 2},
      "",
    ),
  ],
)
def test_annotations_of_another_form(annotations, tmp_path, row, message):
  annotations.write_text(json.dumps(row))
  if not message:  # A single class has nothing that stays.
    assert causal_pictures.select(str(annotations), tmp_path / "o", 0) == 0
    return
  with pytest.raises(UserError, match=message):
    causal_pictures.select(str(annotations), tmp_path / "o", 0)


def test_a_mask_of_another_size(annotations, tmp_path):
  Image.new("L", (8, 8)).save(tmp_path / "p0_1.png")
  with pytest.raises(UserError, match=re.escape("a mask of 40 x 30 pixels")):
    causal_pictures.select(str(annotations), tmp_path / "o", 0)
