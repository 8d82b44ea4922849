"""Times sampling with an adapter. Prints one JSON line.

  python -m experiments.bench.lora --dtype bfloat16

The same rollout three ways: with pairs beside the kernels, as the sampler does
it; with the pairs merged into the kernels first, in the same program; and of
the base model. Medians, run in turn. With --layers 2 --new-tokens 16 pairs took
0.055 s, merged kernels 0.052 s and the base 0.042 s (2 busy CPU cores): so the
sampler keeps the pairs, which are no second kernel and the same numbers as in
training. `gap` is the largest difference, in nats, of the log-probabilities of
the sampled tokens from those that training computes: rounded to bfloat16, a
merged kernel loses a part of what a pair adds.
"""

import argparse
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model
from mmrl import commands, models
from mmrl.models import layers, parameters
from mmrl.models.config import Lora
from mmrl.rollouts import sampler
from mmrl.types import PyTree


def merge(params: PyTree) -> PyTree:
  """Returns W + scale A B for every pair, in the type of W."""
  leaves = parameters.flat(params)
  found = {}
  for path, leaf in leaves.items():
    module, _, name = path.rpartition("/")
    if parameters.is_of_adapter(path):
      continue
    if name == "kernel" and f"{module}/{layers.LORA[0]}" in leaves:
      a, b, scale = (leaves[f"{module}/{one}"] for one in layers.LORA)
      change = scale[..., None, None] * (a @ b)
      leaf = (leaf.astype(jnp.float32) + change).astype(leaf.dtype)
    found[path] = leaf
  return parameters.merge(found)


def main() -> None:
  """Compiles, runs and prints the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  random_model.add_flags(parser)
  add = parser.add_argument
  add("--rank", type=int, default=16)
  add("--prompts", type=int, default=4)
  add("--group", type=int, default=8, help="answers per prompt")
  add("--new-tokens", type=int, default=32)
  add("--repeats", type=int, default=20)
  add("--learned", type=float, default=1e-3, help="deviation of B")
  flags = parser.parse_args()
  commands.keep_freed_memory()
  model = random_model.build(flags)
  base = dataclasses.replace(model.config, dtype=flags.dtype)
  lora = Lora(flags.rank, 2 * flags.rank, "text/layers/.*")
  config = dataclasses.replace(base, lora=lora)
  params = jax.tree.map(lambda x: x.astype(flags.dtype), model.params)
  key = jax.random.key(flags.seed)
  pairs = {
    path: flags.learned * jax.random.normal(key, leaf.shape)
    if path.endswith(layers.LORA[1])
    else leaf
    for path, leaf in parameters.init_adapter(key, config).items()
  }
  adapted = parameters.merge(parameters.flat(params), pairs)
  picture = np.zeros((*[flags.image_size] * 2, 3), np.uint8)
  chats = [random_model.question(picture)] * flags.prompts
  prompt = jax.device_put(model.processor(chats, lengths=(64,)))

  def rollout(params):
    return sampler.rollout(
      params,
      base,
      prompt,
      key,
      answers=flags.group,
      length=flags.new_tokens,
    )

  @jax.jit
  def gap(params, found):
    prefix = models.prefill(params, base, prompt, found.visual)
    scores = models.score(params, base, prefix, found.tokens)
    return jnp.abs(scores.logprobs - found.fields["logprobs_sampler"]).max()

  routes = {
    "pairs": (jax.jit(rollout), adapted),
    "merged": (jax.jit(lambda params: rollout(merge(params))), adapted),
    "base": (jax.jit(rollout), params),
  }
  gaps = {
    name: float(gap(given, run(given))) for name, (run, given) in routes.items()
  }
  spent = clock.in_turn(
    {
      name: functools.partial(run, given)
      for name, (run, given) in routes.items()
    },
    flags.repeats,
  )
  line = {
    "bench": "lora",
    "seconds": {name: round(value, 4) for name, value in spent.items()},
    "gap": gaps,
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
