"""A loss on attention, one long sequence, with its gradient. One JSON line.

  python -m experiments.bench.attention

One sequence of `--length` tokens, a picture and `--answer` answer tokens in
it: the whole model forward, the entropy of the last layer's attention rows of
the answer tokens, mean over heads, and the gradient of all parameters.
`seconds` is a median; `temporary_mib` is XLA's figure for the compiled
program, and `over_start_mib` how much the process grows while it runs.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model
from mmrl import models


def entropy(rows):
  """Minus the entropy of each row."""
  return (rows * jnp.log(rows + 1e-9)).sum(-1)


def main() -> None:
  """Compiles, runs and prints the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  random_model.add_flags(parser)
  parser.add_argument("--length", type=int, default=4096)
  parser.add_argument("--answer", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  flags = parser.parse_args()
  model = random_model.build(flags)
  config = dataclasses.replace(model.config, remat=False)
  rng = np.random.RandomState(flags.seed)
  picture = rng.randint(0, 256, (flags.image_size,) * 2 + (3,), np.uint8)
  prompt = random_model.prompt(
    model.processor, picture, flags.length - flags.answer
  )
  answer = rng.randint(0, 200, (1, 1, flags.answer))

  def loss(params, prompt, answer):
    visual = models.vision(params, config, prompt.patches)
    layers = {"attention_layers": (-1,)}
    prefix = models.prefill(params, config, prompt, visual, **layers)
    inputs = models.embed(params, config, answer)
    output = models.extend(params, config, prefix, inputs, **layers)
    return models.map_rows(entropy, output.attention).mean()

  arguments = model.params, jax.device_put(prompt), jnp.asarray(answer)
  program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
  with clock.Peak() as peak:
    spent = clock.seconds(program, *arguments, repeats=flags.repeats)
  memory = program.memory_analysis()
  line = {
    "bench": "attention",
    "seconds": round(spent, 4),
    "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1),
    "over_start_mib": round(peak.over_start / 2**20, 1),
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
