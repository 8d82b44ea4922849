"""Writes expert trajectories for easy-VQA, for experiments/tgrl.py.

  python -m experiments.experts --output runs/experts.jsonl

What an expert would write is known here: the published questions and answers
of a picture settle the colour and shape of its object. `--share` of the
questions get a trajectory, chosen by `--seed`.
"""

import json

import numpy as np

from experiments import arguments, tiny_model
from mmrl.errors import UserError


def main() -> None:
  """Writes the file and says how many lines it has."""
  parser = arguments.Parser(__doc__)
  parser.add_output("file to write", arguments.output_file)
  parser.add_argument(
    "--share", type=float, default=0.5, help="of the questions"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the choice")
  flags = parser.parse()
  if not 0 <= flags.share <= 1:
    raise UserError(f"expected --share in [0, 1], found {flags.share}")
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import data

  learn = data.EasyVQA(split="train")
  thoughts = tiny_model.describe(learn)
  chosen = np.random.default_rng(flags.seed).random(len(learn)) < flags.share
  lines = [
    {
      "name": name,
      "text": f"<think>{thoughts[picture]}</think><answer>{answer}</answer>",
    }
    for name, (_, answer, picture), takes in zip(
      learn.names(), learn.rows, chosen, strict=True
    )
    if takes and picture in thoughts
  ]
  flags.output.parent.mkdir(parents=True, exist_ok=True)
  flags.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
  print(f"{flags.output}: {len(lines)} trajectories")


if __name__ == "__main__":
  arguments.run(main)
