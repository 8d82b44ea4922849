"""Times sampling alone. Prints one JSON line.

  python -m experiments.bench.generate

`--prompts` picture questions x `--group` answers of exactly `--new-tokens`
tokens: pictures, prompts and decoding, in one compiled program. Medians.

With `--free-length --temperature 100` an answer ends at every token with a
probability of about 1 / vocabulary: uneven lengths, whose mean is printed.
"""

import argparse
import functools
import json
import time

import jax
import numpy as np

from experiments.bench import clock, random_model
from mmrl import commands
from mmrl.rollouts import sampler


def make_parser(description: str) -> argparse.ArgumentParser:
  """The flags of the model and of what is sampled."""
  parser = argparse.ArgumentParser(description=description.split("\n")[0])
  random_model.add_flags(parser)
  add = parser.add_argument
  add("--prompts", type=int, default=4)
  add("--group", type=int, default=8, help="answers per prompt")
  add("--new-tokens", type=int, default=32)
  add("--temperature", type=float, default=1.0)
  add("--repeats", type=int, default=20)
  return parser


def measure(flags: argparse.Namespace) -> dict:
  """Compiles and runs; returns the line."""
  model = random_model.build(flags)
  rng = np.random.RandomState(flags.seed)
  pictures = rng.randint(
    0, 256, (flags.prompts, *[flags.image_size] * 2, 3), np.uint8
  )
  chats = [random_model.question(picture) for picture in pictures]
  length = max(
    len(model.processor.encode(chat, "bench").tokens) for chat in chats
  )
  prompt = model.processor(chats, lengths=(-(-length // 8) * 8,))
  run = jax.jit(
    functools.partial(
      sampler.rollout,
      answers=flags.group,
      length=flags.new_tokens,
      temperature=flags.temperature,
    ),
    static_argnums=1,
  )
  arguments = (
    model.params,
    model.config,
    jax.device_put(prompt),
    jax.random.key(flags.seed),
  )
  began = time.perf_counter()
  lengths = np.asarray(run(*arguments).mask.sum(-1))
  compiled = time.perf_counter() - began
  spent = clock.seconds(run, *arguments, repeats=flags.repeats)
  return {
    "bench": "generate",
    "generate_s": round(spent, 5),
    "new_tokens_per_s": round(lengths.sum() / spent),
    "length": {"mean": float(lengths.mean()), "max": int(lengths.max())},
    "compile_s": round(compiled, 2),
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }


def main() -> None:
  """Runs and prints the line."""
  flags = make_parser(__doc__).parse_args()
  commands.keep_freed_memory()
  print(json.dumps(measure(flags)))


if __name__ == "__main__":
  main()
