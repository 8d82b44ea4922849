"""Writes pairs about drawn scenes, for experiments/adavip.py.

  python -m experiments.scene_pairs --output DIR

Scenes have two to six things (`mmrl.worlds.scenes`). The chosen answer lists
them; the rejected one has, in the place of one of them, a thing that isn't
there. DIR then has

  describe/train.jsonl   scenes to learn to describe, before
  train.jsonl            pairs with the candidate that keeps least of the answer
  random/train.jsonl     the same with a random candidate
  test.jsonl             held-out scenes

Removing a thing is exact here: all other pixels stay.

  python -m mmrl.train --config experiments/scene_pairs.py:DIR --workdir w/sft

learns to describe, for as long as the model still errs; and the four arms are

  python -m mmrl.train --config experiments/adavip.py:DIR,joint,local \\
    --workdir w/joint --config.models.policy.path=w/sft/model

and the same with `DIR,mixed,local`, `DIR,language,local` and
`DIR/random,joint,local`. `test/response` and `test/mention` in summary.json are
hallucination in the sense of Object HalBench, by response and by mention;
`test/recall` is the share of things that are named.
"""

import json
import pathlib

import numpy as np
from PIL import Image

from experiments import arguments, sft
from mmrl.worlds.scenes import scene as scenes
from mmrl.worlds.scenes.things import SHAPES

SEED = 0


def get_config(arg: str = "data"):
  """Supervised learning of descriptions.

  Args:
    arg: DIR.
  """
  config = sft.get_config(arg)
  config.data.train.path = f"{arg}/describe/train.jsonl"
  config.models.policy.remat = False
  config.data.lengths, config.data.patches = (72,), (196,)
  config.frozen = ()
  config.rollout.prompts = 64
  config.rollout.length = 80
  config.train.steps = 600
  config.checkpoint.every = 200
  config.schedule = {
    "name": "warmup_cosine_decay_schedule",
    "init_value": 0.0,
    "peak_value": 2e-3,
    "warmup_steps": 20,
    "decay_steps": 600,
  }
  config.evaluation.benchmarks = {"test": benchmark(arg)}
  return config


def benchmark(folder: str) -> dict:
  """The spec of what descriptions of held-out scenes name."""
  path = pathlib.Path(folder) / "objects.json"
  names = json.loads(path.read_text()) if path.exists() else ["red star"]
  return {
    "name": "objects",
    "data": {"name": "Files", "path": f"{folder}/test.jsonl"},
    "objects": names,
    "questions": 0,
  }


def write(
  folder: pathlib.Path, split: str, count: int, *, pairs: bool, seed: int
) -> list[dict]:
  """Writes pictures, and returns a row for each scene.

  Args:
    folder: of the pictures.
    split: of scenes.
    count: number of scenes.
    pairs: whether candidates are written, too.
    seed: of the scenes.
  """
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import data

  source = data.sources.Scenes(
    split=split, count=count, kinds=("describe",), seed=seed
  )
  rows = []
  for index in range(count):
    example = source[index]
    found = example.extra["preference"]
    name = f"{split}_{seed}_{index}"
    images = {name: example.extra["scenes"][0]}
    if pairs:
      images |= {f"{name}_{i}": one for i, one in enumerate(found.candidates)}
    for stem, one in images.items():
      Image.fromarray(scenes.render(one)).save(folder / f"{stem}.png")
    row = {
      "question": example.question,
      "images": [f"{name}.png"],
      "answer": found.chosen,
      "answers": [found.chosen, found.rejected],
      "candidates": [f"{name}_{i}.png" for i, _ in enumerate(found.candidates)],
      "removed": found.removed,
    }
    rows.append(row)
  return rows


def main() -> None:
  """Writes the folder."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--output",
    required=True,
    type=arguments.output_folder,
    help="folder to write",
  )
  parser.add_argument(
    "--descriptions", type=int, default=8000, help="scenes to learn first"
  )
  parser.add_argument("--pairs", type=int, default=2000, help="number of them")
  parser.add_argument("--test", type=int, default=500, help="held-out scenes")
  flags = parser.parse()
  folder = flags.output
  folders = [folder / name for name in ("describe", "random")]
  for one in folders:
    one.mkdir(parents=True, exist_ok=True)

  def dump(path: pathlib.Path, rows, keep) -> None:
    path.write_text("".join(json.dumps(keep(row)) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")

  def plain(row, **more):
    return {k: row[k] for k in ("question", "images", "answer")} | more

  def learned(row):
    return plain(row, answers=row["answers"][:1])

  describe = write(
    folders[0], "train", flags.descriptions, pairs=False, seed=SEED
  )
  dump(folders[0] / "train.jsonl", describe, learned)
  rows = write(folder, "train", flags.pairs, pairs=True, seed=SEED + 1)
  rng = np.random.default_rng(SEED)

  def pair(row, place, up=""):
    return plain(row, answers=row["answers"]) | {
      "images": [up + row["images"][0]],
      "rejected_images": [up + row["candidates"][place]],
    }

  dump(folder / "train.jsonl", rows, lambda row: pair(row, row["removed"]))
  dump(
    folders[1] / "train.jsonl",
    rows,
    lambda row: pair(row, rng.integers(len(row["candidates"])), "../"),
  )
  test = write(folder, "test", flags.test, pairs=False, seed=SEED)
  dump(folder / "test.jsonl", test, plain)
  dump(
    folders[1] / "test.jsonl",
    test,
    lambda row: plain(row) | {"images": [f"../{row['images'][0]}"]},
  )
  names = [f"{colour} {shape}" for shape in SHAPES for colour in scenes.COLOURS]
  for one in (folder, *folders):
    (one / "objects.json").write_text(json.dumps(names))


if __name__ == "__main__":
  arguments.run(main)
