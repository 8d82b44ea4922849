"""Every benchmark on live weights: two processes, parameters shared out.

About 60 core-seconds: two processes, each of which compiles a run.
"""

import json

from PIL import Image
import pytest
import runs

from mmrl.benchmarks.results import load

pytestmark = pytest.mark.full
ROW = {
  "image_0": "0.png",
  "image_1": "1.png",
  "caption_0": "a red circle",
  "caption_1": "a circle, red",
}


def benchmarks(folder) -> dict:
  """One of each kind, of a few questions."""
  (folder / "images").mkdir()
  for i in range(2):
    Image.new("RGB", (64, 64), (200 * i, 0, 0)).save(
      folder / "images" / f"{i}.png"
    )
  (folder / "examples.jsonl").write_text(json.dumps(ROW))
  mcq = folder / "mcq.tsv"
  mcq.write_text("index\tquestion\tA\tB\tanswer\n1\twhat?\tred\tblue\tB\n")
  drawn = {"name": "Scenes", "split": "test", "count": 6}
  exists = drawn | {"kinds": ("exists",)}
  winoground = {"name": "winoground", "path": str(folder / "examples.jsonl")}
  return {
    "yes_no": {"name": "yes_no", "data": exists},
    "causal": {
      "name": "causal_pairs",
      "data": {"name": "Counterfactuals", "split": "test", "count": 14},
    },
    "winoground": winoground,
    "blind": {"name": "without_pictures", "of": winoground},
    "mcq": {
      "name": "questions",
      "data": {"name": "Files", "path": str(mcq)},
      "scores": {"accuracy": {"name": "inferred_choice"}},
    },
    "described": {
      "name": "objects",
      "data": drawn | {"kinds": ("describe",)},
      "objects": ("star", "ring"),
    },
    "frames": {
      "name": "frames",
      "data": {
        "name": "Figures",
        "split": "test",
        "count": 4,
        "pairs": True,
      },
    },
  }


FIRST = {
  "yes_no": "accuracy",
  "causal": "cac",
  "winoground": "group",
  "blind": "group",
  "mcq": "accuracy",
  "described": "response",
  "frames": "with_ties",
}


def test_every_benchmark_in_the_loop(tmp_path):
  specs = benchmarks(tmp_path)
  folder = runs.make_folder(
    tmp_path,
    f"config.evaluation.benchmarks = {specs!r}",
    "config.evaluation.every = 1",
    "config.evaluation.shown = 1",
    'config.checkpoint.best = "causal/cac"',
    "config.rollout.prompts = 8",
    "config.rollout.answers = 4",
    "config.train.steps = 2",
    "config.shares.every = 0",
    "config.mesh.fsdp = 2",
    # Of all benchmarks' prompts and right answers.
    "config.rollout.length = 64",
    "config.data.lengths = (320,)",
    "config.data.patches = (256,)",
  )
  workdir = folder / "run"
  runs.finish(folder, workdir, 2)
  rows = runs.rows(workdir)
  summary = json.loads((workdir / "summary.json").read_text())
  last = summary["benchmarks"]
  report = (workdir / "report.html").read_text()
  after = load(workdir / "after.json")
  for name, number in FIRST.items():
    logged = [row[f"{name}/{number}"] for row in rows]
    assert len(logged) == 2
    assert logged[-1] == last[name]["after"][number]["value"], name
    assert last[name]["after"][number]["low"] <= logged[-1]
    assert f"{name}/{number}" in report
    assert len(after[name].shown) == 1
  events = b"".join(
    path.read_bytes() for path in (workdir / "tensorboard").iterdir()
  )
  assert all(f"{k}/{x}".encode() in events for k, x in FIRST.items())
  assert {"cac", "aac", "chr"} <= last["causal"]["baseline"].keys()
  assert summary["best"]["name"] == "causal/cac"
  assert summary["best"]["step"] in (1, 2)
