"""Writes pairs about drawn scenes, for the local arms of experiments/adavip.py.

  python -m experiments.scene_pairs --output runs/pairs

Scenes have two to six things (`mmrl.worlds.scenes`). The chosen answer lists
them; the rejected one has, in the place of one of them, a thing that isn't
there. runs/pairs/candidates.jsonl has the pairs, and as candidates the picture
without each of its things: removing is exact here, all other pixels stay.
`python -m experiments.vision_negatives` chooses among them.
"""

import json
import pathlib

from PIL import Image

from experiments import arguments
from mmrl.worlds.scenes import scene as scenes


def write(folder: pathlib.Path, count: int, seed: int) -> list[dict]:
  """Writes pictures and candidates, and returns a row for each scene.

  Args:
    folder: of the pictures.
    count: number of scenes of the split "train".
    seed: of the scenes.
  """
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import data
  from mmrl.data.worlds import source

  drawn = data.sources.Scenes(
    split="train", count=count, kinds=("describe",), seed=seed
  )
  folder.mkdir(parents=True, exist_ok=True)
  rows = []
  for index in range(count):
    example = drawn[index]
    found = example.extra["preference"]
    images = {f"{index}.png": example.extra["scenes"][0]}
    for i, one in enumerate(found.candidates):
      images[f"{index}_{i}.png"] = one
    for name, one in images.items():
      Image.fromarray(scenes.render(one)).save(folder / name)
    original, *candidates = images
    rows.append(
      {
        "question": example.question,
        "images": [original],
        "answer": found.chosen,
        "answers": [
          source.answer("", text) for text in (found.chosen, found.rejected)
        ],
        "candidates": candidates,
      }
    )
  return rows


def main() -> None:
  """Writes the folder."""
  parser = arguments.Parser(__doc__)
  parser.add_output("folder to write")
  parser.add_argument("--pairs", type=int, default=1000, help="number of them")
  parser.add_argument("--seed", type=int, default=1, help="of scenes")
  flags = parser.parse()
  rows = write(flags.output, flags.pairs, flags.seed)
  path = flags.output / "candidates.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  print(f"{path}: {len(rows)} pairs")


if __name__ == "__main__":
  arguments.run(main)
