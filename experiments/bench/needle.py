"""Needles in synthetic text: punctuation-aware blocks, mean pooling, dense.

  python -m experiments.bench.needle --seeds 3

A text is `--length` tokens: words, and every few of them a punctuation mark.
Six needles stand in it: rare marks (`at`: they count as punctuation) or rare
words (`away`), one for each of eight keys and eight values. Each of sixteen
answers asks for a key, and what is predicted next is to be its value.
A model of two layers is trained with dense attention; from there on it
is trained again with each kind of attention, at K = 2 where it is sparse.

Prints one JSON line for each seed, and a table: the share of values that are
found, at K = 1, 2 and 4, mean and range over seeds. `dense, then` is the dense
model with sparse attention that it wasn't trained with.
"""

import argparse
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmrl import models
from mmrl.models.config import ModelConfig, TextConfig, VisionConfig
from mmrl.models.kernels import blocks
from mmrl.models.kernels.blocks import Sparse
from mmrl.types import Prompt

KEYS = 8
WORDS, VALUES, ASKED = range(32), range(32, 40), range(40, 48)
# Ordinary punctuation, needles that count as it, and those that don't.
PLAIN, AT, AWAY = range(48, 52), range(52, 116), range(116, 180)
NEEDLES, ANSWERS = 6, 16
BLOCK = LOCAL = INIT = 8
TRAINED_AT, TOP = 2, (1, 2, 4)
# Tokens between two marks, at least and at most.
_BETWEEN = 4, 10


def architecture() -> ModelConfig:
  """Two layers of width 64; its tower is never run."""
  text = TextConfig(
    vocab_size=192,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    mrope_section=(2, 3, 3),
    rope_theta=1e4,
  )
  vision = VisionConfig(1, 16, 16, 1, 64, fullatt_block_indexes=(0,))
  ids = range(180, 186)
  return ModelConfig(text, vision, False, *ids, remat=False)


def sparse(top_k: int, mix: float) -> Sparse:
  """Sparse attention whose punctuation is that of the texts."""
  found = blocks.punctuation_sparse(
    block=BLOCK, init=INIT, local=LOCAL, top_k=top_k, mix=mix
  )
  return dataclasses.replace(found, punctuation=(*PLAIN, *AT))


def text(rng: np.random.RandomState, length: int):
  """One text, and its questions: (tokens, keys, values, whether `at`)."""
  tokens = rng.choice(WORDS, length)
  place = rng.randint(*_BETWEEN)
  while place < length:
    tokens[place] = rng.choice(PLAIN)
    place += rng.randint(*_BETWEEN)
  # Every needle in a block of its own, none in the first or the local ones.
  own = rng.choice(np.arange(1, length // BLOCK - 1), NEEDLES, replace=False)
  at = rng.randint(0, BLOCK, NEEDLES) + own * BLOCK
  keys = rng.permutation(KEYS)[:NEEDLES]
  values = rng.randint(0, len(VALUES), NEEDLES)
  is_at = rng.rand(NEEDLES) < 0.5
  which = keys * len(VALUES) + values
  tokens[at] = np.where(is_at, AT[0] + which, AWAY[0] + which)
  one = rng.randint(0, NEEDLES, ANSWERS)
  return tokens, ASKED[0] + keys[one], VALUES[0] + values[one], is_at[one]


def batch(rng: np.random.RandomState, prompts: int, length: int):
  """Texts as prompts, and questions [P, G]."""
  parts = zip(*(text(rng, length) for _ in range(prompts)), strict=True)
  tokens, keys, values, is_at = map(np.stack, parts)
  places = np.broadcast_to(np.arange(length)[:, None], (prompts, length, 3))
  prompt = Prompt(
    tokens=jnp.asarray(tokens, jnp.int32),
    mask=jnp.ones((prompts, length), bool),
    positions=jnp.asarray(places, jnp.int32),
    visual_index=jnp.full((prompts, length), -1),
    next_position=jnp.full((prompts,), length, jnp.int32),
    region=jnp.zeros((prompts, length)),
    patches=None,  # type: ignore[arg-type]
  )
  return prompt, jnp.asarray(keys), jnp.asarray(values), is_at


def predict(params, config: ModelConfig, prompt: Prompt, keys):
  """Logits of what follows each key, [P, G, V]."""
  nothing = jnp.zeros((1, 1, config.text.hidden_size))
  prefix = models.prefill(params, config, prompt, nothing)
  tokens = keys[..., None]
  inputs = models.embed(params, config, tokens)
  output = models.extend(params, config, prefix, inputs, tokens=tokens)
  return models.logits(params, config, output.hidden[:, :, 0])


def optimizer(steps: int) -> optax.GradientTransformation:
  rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, steps)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def update(params, state, config, steps, prompt, keys, values):
  """One step of Adam on the cross-entropy of the values."""

  def loss(params):
    found = predict(params, config, prompt, keys)
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(found, values).mean()

  value, gradient = jax.value_and_grad(loss)(params)
  change, state = optimizer(steps).update(gradient, state, params)
  return optax.apply_updates(params, change), state, value


@functools.partial(jax.jit, static_argnames=("config",))
def right(params, config, prompt, keys, values):
  return predict(params, config, prompt, keys).argmax(-1) == values


def train(params, config, seed: int, steps: int, flags):
  """Trains on fresh texts; the same ones for every kind of attention."""
  rng = np.random.RandomState(seed)
  state, value = optimizer(steps).init(params), jnp.nan
  for step in range(steps):
    prompt, keys, values, _ = batch(rng, flags.prompts, flags.length)
    params, state, value = update(
      params, state, config, steps, prompt, keys, values
    )
    if flags.log and step % flags.log == 0:
      print(f"step {step}: loss {float(value):.3f}", flush=True)
  return params, float(value)


def found(params, config, flags) -> dict[str, float]:
  """Shares of values that are found, of needles `at` and `away`."""
  rng, hits, kinds = np.random.RandomState(10**6), [], []
  for _ in range(flags.batches):
    prompt, keys, values, is_at = batch(rng, flags.prompts, flags.length)
    hits.append(np.asarray(right(params, config, prompt, keys, values)))
    kinds.append(is_at)
  hit, kind = np.concatenate(hits), np.concatenate(kinds)
  return {
    "at": round(float(hit[kind].mean()), 4),
    "away": round(float(hit[~kind].mean()), 4),
  }


def one_seed(seed: int, flags) -> dict:
  """Trains and measures all kinds of attention from one dense model."""
  config = architecture()
  params = models.init(jax.random.key(seed), config)
  params, loss = train(params, config, seed, flags.steps, flags)
  line: dict = {"seed": seed, "dense_loss": round(loss, 4), "found": {}}
  mixes = {"mean pooling": 1.0, "punctuation": 0.5}

  def measure(name, params, mix):
    for top_k in TOP:
      one = dataclasses.replace(config, sparse=sparse(top_k, mix))
      line["found"][f"{name}, K={top_k}"] = found(params, one, flags)

  for name, mix in mixes.items():
    measure(f"dense, then {name}", params, mix)
  more = flags.more, flags
  dense, _ = train(params, config, seed + 1000, *more)
  line["found"]["dense"] = found(dense, config, flags)
  for name, mix in mixes.items():
    own = dataclasses.replace(config, sparse=sparse(TRAINED_AT, mix))
    tuned, _ = train(params, own, seed + 1000, *more)
    measure(name, tuned, mix)
  return line


def table(lines: list[dict]) -> str:
  """A row for each kind of attention: mean over seeds, least and most."""
  rows = ["| attention | at punctuation | away from it |", "|---|---|---|"]
  for name in lines[0]["found"]:
    cells = []
    for kind in ("at", "away"):
      values = np.array([100 * line["found"][name][kind] for line in lines])
      span = f"{values.min():.1f} to {values.max():.1f}"
      cells.append(f"{values.mean():.1f} ({span})")
    rows.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(rows)


def main() -> None:
  """Runs all seeds."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  add = parser.add_argument
  add("--seeds", type=int, default=3)
  add("--first", type=int, default=0, help="the first seed")
  add("--length", type=int, default=128, help="tokens of a text")
  add("--prompts", type=int, default=16, help="texts of a batch")
  add("--steps", type=int, default=600, help="with dense attention")
  add("--more", type=int, default=200, help="with each kind of attention")
  add("--batches", type=int, default=16, help="batches to measure on")
  add("--log", type=int, default=0, help="steps between printed losses")
  flags = parser.parse_args()
  settings = sparse(TRAINED_AT, 0.5)
  for top_k in TOP:
    one = dataclasses.replace(settings, top_k=top_k)
    share = blocks.sparsity(one, flags.length)
    print(f"sparsity at K = {top_k}: {share:.4f}", flush=True)
  lines = []
  for seed in range(flags.first, flags.first + flags.seeds):
    lines.append(one_seed(seed, flags))
    print(json.dumps(lines[-1]), flush=True)
  print(table(lines))


if __name__ == "__main__":
  main()
