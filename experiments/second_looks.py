"""Writes texts with a second look at the picture, to teach Look-Back's form.

  python -m experiments.second_looks --output runs/look_back
  python -m experiments.second_looks --control --output runs/look_back_control

Rows of easy-VQA's train split whose pictures can be described, each with a text
to learn, for experiments/look_back.py:runlocal,cold. Thought and check name
colour and shape, and the second thought the answer. `--control` writes the same
words without a segment.
"""

from experiments import arguments


def rows(source, segment: bool):
  """Yields rows of an `EasyVQA` with a text of the grammar."""
  from experiments import tiny_model
  from mmrl.rewards.looks import back

  described = tiny_model.describe(source)
  for question, answer, picture in source.rows:
    if picture in described:
      seen = described[picture]
      text = back.compose(seen, seen, answer, answer, segment=segment)
      yield {
        "question": question,
        "images": [source.pictures[picture]],
        "answer": answer,
        "answers": [text],
      }


def main() -> None:
  """Writes train.jsonl to the folder."""
  parser = arguments.Parser(__doc__)
  parser.add_output("folder to write to")
  parser.add_argument("--control", action="store_true", help="no segment")
  flags = parser.parse()
  folder = flags.output
  folder.mkdir(parents=True, exist_ok=True)
  # Imported late, so that a mistyped flag is answered at once.
  from experiments import tiny_model
  from mmrl import data

  source = data.EasyVQA(split="train")
  path = folder / "train.jsonl"
  tiny_model.write_rows(path, rows(source, not flags.control))
  print(f"{path} written")


if __name__ == "__main__":
  arguments.run(main)
