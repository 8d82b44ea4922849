"""Writes texts with a second look at the picture, to teach Look-Back's form.

  python -m experiments.second_looks --output runs/look_back
  python -m experiments.second_looks --variant solution \\
    --output runs/look_back_solution
  python -m experiments.second_looks --variant control \\
    --output runs/look_back_control

Rows of easy-VQA's train split whose pictures can be described, each with a text
to learn, for experiments/look_back.py:runlocal,cold. A solution names colour
and shape, and then the answer. "semantic" looks again in its middle, before the
answer; "solution" solves it whole, then looks again, and answers once more;
"control" has the words of "semantic" without a segment.
"""

from experiments import arguments

VARIANTS = ("semantic", "solution", "control")


def text(seen: str, answer: str, variant: str) -> str:
  """Composes a text to learn.

  Args:
    seen: colour and shape.
    answer: the right one.
    variant: one of `VARIANTS`.
  """
  from mmrl.rewards.looks import back

  whole = f"{seen} {answer}"
  if variant == "solution":
    return back.compose(whole, seen, answer, answer)
  first, second = back.split(whole, len(seen.split()))
  return back.compose(
    first, seen, second, answer, segment=variant == "semantic"
  )


def rows(source, variant: str):
  """Yields rows of an `EasyVQA` with a text of a variant."""
  from experiments import tiny_model

  described = tiny_model.describe(source)
  for question, answer, picture in source.rows:
    if picture in described:
      yield {
        "question": question,
        "images": [source.pictures[picture]],
        "answer": answer,
        "answers": [text(described[picture], answer, variant)],
      }


def main() -> None:
  """Writes train.jsonl to the folder."""
  parser = arguments.Parser(__doc__)
  parser.add_output("folder to write to")
  parser.add_argument(
    "--variant",
    default=VARIANTS[0],
    choices=VARIANTS,
    help="where the text looks again; in control, nowhere",
  )
  flags = parser.parse()
  folder = flags.output
  folder.mkdir(parents=True, exist_ok=True)
  # Imported late, so that a mistyped flag is answered at once.
  from experiments import tiny_model
  from mmrl import data

  source = data.EasyVQA(split="train")
  path = folder / "train.jsonl"
  tiny_model.write_rows(path, rows(source, flags.variant))
  print(f"{path} written")


if __name__ == "__main__":
  arguments.run(main)
