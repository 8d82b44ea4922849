"""Kitchens as files: mp4 videos and the annotations of published benchmarks."""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

from PIL import Image

from mmrl.chains.writing import stamp
from mmrl.errors import UserError
from mmrl.worlds.kitchens import drawing, planning
from mmrl.worlds.kitchens.asking import LETTERS, Item, Options

# As HD-EPIC's files begin the names of kinds.
_PREFIXES = {
  "fixture_interaction_counting": "3d_perception",
  "fixture_location": "3d_perception",
  "object_location": "3d_perception",
}
_DOMAINS = {"L1": "Epic-Kitchens", "L2": "Ego4D", "L3": "Ego4D"}


def video_id(item: Item, index: int) -> str:
  """Names a video as HD-EPIC does, by kitchen and number."""
  return f"P{item.kitchen.plan.number:02}-{index:08}"


def write(items: Sequence[Item], options: Options, folder: str) -> list[str]:
  """Writes videos and annotations, and returns the annotations' paths.

  HD-EPIC: `videos/P01-00000000.mp4` and `vqa-benchmark/KIND.json` for each of
  its kinds, in its own form, with the key "metadata" besides, which has what
  rewards read. SEED-Bench-R1: `SPLIT.jsonl`, with `videos/kitchens/..mp4` and
  `images/kitchens/..png`; training has the list of negative answers,
  the other splits four choices.

  Args:
    items: of all kinds, in order of their index.
    options: with which they were made.
    folder: is made if it isn't there.

  Raises:
    UserError: if the folder has annotations already.
  """
  root = pathlib.Path(folder)
  there = [*root.glob("vqa-benchmark/*.json"), *root.glob("*.jsonl")]
  if there:
    raise UserError(
      f"folder: expected no annotations in {root}, found {there[0].name}; name"
      " another folder"
    )
  asked: dict[str, dict[str, Any]] = {}
  planned = []
  for index, item in enumerate(items):
    if item.kind == planning.KIND:
      planned.append(_seed_bench(item, options, index, root))
      continue
    name = f"{_PREFIXES.get(item.kind, 'object_motion')}_{item.kind}"
    file = asked.setdefault(name, {})
    file[f"{name}_{len(file)}"] = hd_epic(item, index)
    _video(item, options, root / "videos" / f"{video_id(item, index)}.mp4")
  paths = []
  for name, entries in asked.items():
    path = root / "vqa-benchmark" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=4), "utf-8")
    paths.append(os.fspath(path))
  if planned:
    path = root / f"{options.split}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in planned), "utf-8")
    paths.append(os.fspath(path))
  return paths


def hd_epic(item: Item, index: int) -> dict[str, Any]:
  """Returns an item in the form of HD-EPIC's files, and "metadata"."""
  inputs = {"video 1": {"id": video_id(item, index)}}
  if item.kind in (
    "object_movement_counting",
    "stationary_object_localization",
  ):
    time = stamp(item.time).split()[1]
    inputs["image 1"] = {"id": video_id(item, index), "time": time}
  return {
    "inputs": inputs,
    "question": item.question,
    "choices": list(item.choices),
    "correct_idx": item.correct,
    "metadata": dict(item.gold),
  }


def _seed_bench(
  item: Item, options: Options, index: int, root: pathlib.Path
) -> dict[str, Any]:
  """Writes video and picture; returns an item in SEED-Bench-R1's form."""
  name = video_id(item, index)
  if item.gold["progress"]:
    _video(item, options, root / "videos" / "kitchens" / f"{name}.mp4")
  picture = root / "images" / "kitchens" / f"{name}.png"
  picture.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(now(item, options)).save(picture)
  row: dict[str, Any] = {
    "sample_id": index,
    "task_goal": item.gold["goal"],
    "question": item.question,
    "answer": item.choices[item.correct],
    "video_source": "kitchens",
    "video_id": name,
    "video_basename": f"{name}.mp4",
    "current_observation_basename": f"{name}.png",
    "task_progress_metadata": [
      {
        "narration_text": text,
        "start_frame": int(start * options.fps),
        "stop_frame": int(stop * options.fps),
      }
      for text, start, stop in item.gold["progress"]
    ],
  }
  if options.split == "train":
    return row | {"negative_answers": list(item.negatives)}
  row |= {
    f"choice_{letter.lower()}": choice
    for letter, choice in zip(LETTERS, item.choices, strict=False)
  }
  domain = _DOMAINS[options.split]
  return row | {"golden_choice_idx": item.letter, "domain": domain}


def now(item: Item, options: Options):
  """Draws what is seen at the item's time."""
  return drawing.frame(
    item.kitchen, item.time, size=options.size, view=options.view
  )


def _video(item: Item, options: Options, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  drawing.write(
    item.kitchen, path, options.fps, size=options.size, view=options.view
  )
