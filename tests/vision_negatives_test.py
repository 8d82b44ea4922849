"""Candidates: the least score is taken, and what is wrong is said."""

import json
import sys

import numpy as np
from PIL import Image
import pytest

from experiments import vision_negatives as negatives
from mmrl.errors import UserError

INF = np.inf


def test_select_golden():
  scores = [[0.31, 0.22, 0.27], [0.4, INF, 0.39], [INF] * 3, [0.2, 0.1, 0.1]]
  place, valid = negatives.select(np.array(scores))
  assert place.tolist() == [1, 2, 0, 1]
  assert valid.tolist() == [True, True, False, True]


def row(*candidates, **changes):
  return {
    "question": "what is there?",
    "images": ["a.png"],
    "answers": ["a cup", "a dog"],
    "candidates": list(candidates),
  } | changes


@pytest.fixture
def folder(tmp_path):
  for name, level in (("a", 0), ("b", 90), ("c", 250)):
    Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / f"{name}.png")
  return tmp_path


def test_rows_keep_the_candidate_of_the_least_score(folder):
  asked = []

  def score(triples):
    asked.extend(triples)
    return [2.0, 1.0, 3.0]

  rows = [row("b.png", "c.png"), row(), row("c.png", kind="x")]
  found = negatives.chosen(rows, folder, score)
  assert [one.get("rejected_images") for one in found] == [
    ["c.png"],
    None,
    ["c.png"],
  ]
  assert found[2]["kind"] == "x" and "candidates" not in found[0]
  question = "what is there?", "a cup"
  assert asked == [
    (str(folder / name), *question) for name in ("b.png", "c.png", "c.png")
  ]
  assert negatives.chosen([row()], folder, score)[0].keys() == {
    *("question", "images", "answers")
  }


@pytest.mark.parametrize(
  "lines, message",
  [
    ([{"question": "q"}], ":1: expected a row with .* none of images, answers"),
    ([row(), row(images=["a.png"] * 2)], ":2: expected one picture and two te"),
    (
      [row(answers=["x"])],
      ":1: expected one picture and two texts, found 1 and",
    ),
    ([row("d.png")], ":1: expected a picture, found no d.png"),
    (["{"], ":1: expected JSON"),
    ([3], ":1: expected a row with question"),
    ([row(question=3)], ":1: expected a text as 'question', found 3"),
    (
      [row(answers="ab")],
      ":1: expected a list of texts as 'answers', found 'a",
    ),
    (
      [row(candidates=[3])],
      ":1: expected a list of texts as 'candidates', fou",
    ),
  ],
)
def test_rows_without_candidates_are_refused(folder, lines, message):
  path = folder / "data.jsonl"
  texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  path.write_text("\n".join(texts))
  with pytest.raises(UserError, match=f"data.jsonl{message}"):
    negatives.read(path)


def test_without_torch_clip_says_what_to_install(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(
    UserError, match="--clip: expected torch.* pip install to"
  ):
    negatives.clip(str(folder))


def run(monkeypatch, *flags):
  monkeypatch.setattr(sys, "argv", ["vision_negatives", *map(str, flags)])
  negatives.main()


@pytest.mark.full
def test_the_command_by_a_model_s_likelihood(folder, monkeypatch, capsys):
  """Of the tiny model; the candidate's score is that of the picture alone."""
  path, output = folder / "data.jsonl", folder / "train.jsonl"
  lines = [row("b.png", "c.png"), row("c.png"), row("c.png", "b.png", "a.png")]
  path.write_text("\n".join(map(json.dumps, lines)))
  run(monkeypatch, "--data", path, "--output", output, "--model", "tiny")
  found = [json.loads(line) for line in output.read_text().splitlines()]
  score = negatives.likelihood("tiny")
  values = {
    name: score([(str(folder / name), "what is there?", "a cup")])[0]
    for name in ("a.png", "b.png", "c.png")
  }
  assert len(set(values.values())) == 3 and max(values.values()) < 0
  for line, one in zip(lines, found, strict=True):
    assert one["rejected_images"] == [min(line["candidates"], key=values.get)]
  assert (
    "train.jsonl: 3 pairs, 0 without a candidate" in capsys.readouterr().out
  )
  other = folder / "sub" / "random" / "train.jsonl"
  run(monkeypatch, "--data", path, "--output", other, "--random", 0)
  for line in map(json.loads, other.read_text().splitlines()):
    assert line["images"] == ["../../a.png"]
    (one,) = line["rejected_images"]
    assert (other.parent / one).resolve().parent == folder.resolve()
  with pytest.raises(UserError, match="--output: expected another file than"):
    run(monkeypatch, "--data", path, "--output", path, "--random", 0)
