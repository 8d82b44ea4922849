"""Compilations over steps of mixed sizes. Prints one JSON line.

  python -m experiments.bench.shapes

Questions of few and of many words about small and large pictures, several of
them or none, through `--steps` steps of GRPO. Every batch is padded to the
buckets of the config, so that the programs of the first two steps are those of
all.
"""

from concurrent import futures
import json
import pathlib
import random
import tempfile

import jax
import numpy as np
from PIL import Image

from experiments.bench import random_model, step
from mmrl import commands, hub
from mmrl.train import loop
from mmrl.train import run as run_lib
from mmrl.workdir import log as log_lib


def write_questions(folder: pathlib.Path, seed: int) -> str:
  """Questions of 1 to 40 words with 0 to 3 pictures of 28 to 168 px."""
  rng, lines = random.Random(seed), []
  for i in range(256):
    names = [f"{i}_{j}.png" for j in range(rng.randrange(4))]
    for name in names:
      sides = [rng.randrange(28, 169) for _ in range(2)]
      pixels = np.random.RandomState(i).randint(0, 256, (*sides, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name)
    words = " ".join(["colour"] * rng.randint(1, 40))
    lines.append(
      json.dumps({"question": words, "answer": "red", "images": names})
    )
  (folder / "questions.jsonl").write_text("\n".join(lines))
  return str(folder / "questions.jsonl")


def main() -> None:
  """Runs the steps and prints the line."""
  parser = step.make_parser(__doc__)
  parser.set_defaults(steps=100, image_size=168, free_length=True)
  flags = parser.parse_args()
  commands.keep_freed_memory()
  compilations, seen, counts = log_lib.Compilations(), set(), []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    hub.save(random_model.build(flags), folder / "model")
    path = write_questions(folder, flags.seed)
    config = step.build_config(flags, str(folder / "model"), path)
    config.data.lengths, config.data.patches = (256,), (512,)
    run = run_lib.build_run(config)
    state, questions = run.initial_state(), loop.read_questions(run)
    with futures.ThreadPoolExecutor() as pool:
      for number in range(1, flags.steps + 1):
        state, _, samples = step.one_step(run, state, questions, number, pool)
        index = samples.prompt.visual_index
        seen.add((int(samples.prompt.mask.sum()), int((index >= 0).sum())))
        counts.append(compilations.count)
  line = {
    "bench": "shapes",
    "steps": flags.steps,
    "sizes_seen": len(seen),
    "compilations_after_second_step": counts[-1] - counts[1],
    "versions": {"jax": jax.__version__},
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
