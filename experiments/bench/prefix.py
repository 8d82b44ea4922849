"""A prompt computed once for its answers, against once for each. One JSON line.

  python -m experiments.bench.prefix

Gradient of the log-probabilities of `--answers` answers of `--answer-length`
tokens to one prompt of `--prompt-length`: the prompt once and all answers to
it, and as many full rows of prompt and answer. Same model, same functions, run
in turn; medians. `largest_difference` is that of the gradients, as a share of
the largest entry of each.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model
from mmrl import models


def main() -> None:
  """Compiles and runs both forms."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  random_model.add_flags(parser)
  parser.add_argument("--prompt-length", type=int, default=2048, help="S")
  parser.add_argument("--answer-length", type=int, default=128, help="R")
  parser.add_argument("--answers", type=int, default=8, help="G")
  parser.add_argument("--repeats", type=int, default=5)
  flags = parser.parse_args()
  model = random_model.build(flags)
  config = dataclasses.replace(model.config, remat=False)
  rng = np.random.RandomState(flags.seed)
  picture = rng.randint(0, 256, (flags.image_size,) * 2 + (3,), np.uint8)
  once = random_model.prompt(model.processor, picture, flags.prompt_length)
  tokens = rng.randint(0, 200, (1, flags.answers, flags.answer_length))
  # Each answer behind a prompt of its own.
  each = jax.tree.map(lambda x: np.repeat(x, flags.answers, axis=0), once)

  def loss(params, prompt, tokens):
    visual = models.vision(params, config, prompt.patches)
    prefix = models.prefill(params, config, prompt, visual)
    return models.score(params, config, prefix, tokens).logprobs.mean()

  program = jax.jit(jax.grad(loss))
  shared = model.params, jax.device_put(once), jnp.asarray(tokens)
  full = model.params, jax.device_put(each), shared[2].swapaxes(0, 1)
  differences = jax.tree.map(
    lambda one, other: float(jnp.abs(one - other).max() / jnp.abs(other).max()),
    program(*shared),
    program(*full),
  )
  spent = clock.in_turn(
    {"shared": lambda: program(*shared), "full": lambda: program(*full)},
    flags.repeats,
  )
  line = {
    "bench": "prefix",
    "shared_s": round(spent["shared"], 4),
    "full_s": round(spent["full"], 4),
    "times_faster": round(spent["full"] / spent["shared"], 2),
    "tokens_ratio": round(
      flags.answers
      * (flags.prompt_length + flags.answer_length)
      / (flags.prompt_length + flags.answers * flags.answer_length),
      2,
    ),
    "largest_difference": max(jax.tree.leaves(differences)),
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
