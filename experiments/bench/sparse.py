"""Sparse attention against dense: a prefill and a decoding step. JSON lines.

  python -m experiments.bench.sparse --layers 2

A random model over prompts of `--lengths` random tokens, a fifth of which are
punctuation: `prefill_s`, and `decode_s` of one token of each of `--answers`
answers behind them, medians of `--repeats` calls, dense and sparse in turn.
`temporary_mib` is XLA's figure for the compiled program. `times` is sparse over
dense; `sparsity` is the formula's. Dense prompts longer than `--dense-most`
aren't run.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model
from mmrl import models
from mmrl.models import decoding
from mmrl.models.kernels import blocks
from mmrl.types import Prefix, Prompt

_MIB = 2**20


def prompt(rng, length: int) -> Prompt:
  """One prompt of random tokens, without a picture."""
  places = np.arange(length, dtype=np.int32)[None]
  return Prompt(
    tokens=jnp.asarray(rng.randint(0, 200, (1, length)), jnp.int32),
    mask=jnp.ones((1, length), bool),
    positions=jnp.asarray(np.stack([places] * 3, -1)),
    visual_index=jnp.full((1, length), -1),
    next_position=jnp.full((1,), length, jnp.int32),
    region=jnp.zeros((1, length)),
    patches=None,  # type: ignore[arg-type]
  )


def prefix(config, rng, length: int) -> Prefix:
  """What a prefill returns, with random keys and values."""
  text = config.text
  shape = (text.num_hidden_layers, 1, length, text.num_key_value_heads)

  def normal(*sizes):
    return jnp.asarray(rng.standard_normal(sizes), config.dtype)

  return Prefix(
    keys=normal(*shape, text.head_dim),
    values=normal(*shape, text.head_dim),
    mask=jnp.ones((1, length), bool),
    next_position=jnp.full((1,), length, jnp.int32),
    last_hidden=normal(1, text.hidden_size),
    marks=jnp.asarray(rng.rand(1, length) < 0.2),
  )


def prefill_program(params, config, one: Prompt):
  """The compiled prefill, and its arguments."""

  def run(params, one):
    visual = jnp.zeros((1, 1, config.text.hidden_size))
    return models.prefill(params, config, one, visual).last_hidden

  return jax.jit(run).lower(params, one).compile(), (params, one)


def decode_program(params, config, one: Prefix, answers: int):
  """A compiled decoding step, and its arguments."""
  decoder = jax.jit(
    lambda params, one: decoding.take_apart(params, one, config.sparse)
  )(params, one)
  cache = decoding.empty_cache(decoder, answers, 128)
  token = jnp.zeros((1, answers), jnp.int32)

  # The prompt's arrays are in the decoder: they aren't copied again.
  def run(params, one, decoder, cache, token):
    return models.decode(params, config, one, decoder, cache, token)[0]

  arguments = params, one, decoder, cache, token
  return jax.jit(run).lower(*arguments).compile(), arguments


def make_parser(description: str) -> argparse.ArgumentParser:
  """The flags of the model and of what is compared on it."""
  parser = argparse.ArgumentParser(description=description.split("\n")[0])
  random_model.add_flags(parser)
  add = parser.add_argument
  add("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
  add("--dense-most", type=int, default=32768)
  add("--block", type=int, default=16)
  add("--init", type=int, default=128)
  add("--local", type=int, default=512)
  add("--top-k", type=int, default=2)
  add("--answers", type=int, default=1)
  add("--repeats", type=int, default=5)
  add("--no-prefill", action="store_true")
  return parser


def main() -> None:
  """Compiles, runs and prints a line for each length."""
  flags = make_parser(__doc__).parse_args()
  model = random_model.build(flags)
  sparse = blocks.punctuation_sparse(
    block=flags.block, init=flags.init, local=flags.local, top_k=flags.top_k
  )
  sparse = dataclasses.replace(sparse, punctuation=tuple(range(40)))
  configs = {
    "dense": model.config,
    "sparse": dataclasses.replace(model.config, sparse=sparse),
  }
  for length in flags.lengths:
    rng = np.random.RandomState(flags.seed)
    tokens, before = prompt(rng, length), prefix(model.config, rng, length)
    kept = [x for x in configs if x == "sparse" or length <= flags.dense_most]
    line: dict = {"bench": "sparse", "keys": length}
    makers = {
      "prefill": lambda c: prefill_program(model.params, c, tokens),  # noqa: B023
      "decode": lambda c: decode_program(
        model.params,
        c,
        before,  # noqa: B023
        flags.answers,
      ),
    }
    if flags.no_prefill:
      del makers["prefill"]
    for what, make in makers.items():
      programs = {name: make(configs[name]) for name in kept}
      spent = clock.in_turn(
        {
          name: lambda one=one: one[0](*one[1])
          for name, one in programs.items()
        },
        flags.repeats,
      )
      line[f"{what}_s"] = {k: round(v, 5) for k, v in spent.items()}
      line[f"{what}_temporary_mib"] = {
        name: round(one[0].memory_analysis().temp_size_in_bytes / _MIB, 1)
        for name, one in programs.items()
      }
      if len(kept) > 1:
        times = spent["sparse"] / spent["dense"]
        line[f"{what}_times"] = round(times, 3)
    line["sparsity"] = round(blocks.sparsity(sparse, length), 6)
    line |= {"config": vars(flags), "versions": {"jax": jax.__version__}}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
