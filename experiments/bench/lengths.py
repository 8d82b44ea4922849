"""Times answers of uneven lengths. Prints one JSON line for each spread.

  python -m experiments.bench.lengths

Lengths are drawn from a log-normal distribution of this mean and coefficient of
variation (`--cv`), at most `--new-tokens`; an answer is made to end at its own.
The same `--requests` prompts are answered in three ways, in turn:

* whole: batches of `--lanes`, all of which is decoded until the last answer
  ends;
* narrowed: the same batches; as answers end, fewer are decoded;
* lanes: a prompt takes the place of an answer that has ended.

`rollout` is `whole` and `narrowed` for one batch of `--prompts` x `--group`.
Medians; `wasted` is the share of decoded token slots that hold no token of an
answer.
"""

import argparse
import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model
from mmrl import commands
from mmrl.rollouts import continuous, decode_loop, sampler
from mmrl.types import pytree


@pytree
class Scripted(sampler.Sampling):
  """Draws tokens, and the end where it is due; a key is a pair with that."""

  def numbers(self, key, answers, length):
    key, end = key
    uniform = super().numbers(key, answers, length)
    end = jnp.broadcast_to(end[:, None], (answers, length, 1))
    return jnp.concatenate([uniform, end.astype(uniform.dtype)], axis=-1)


def draw_lengths(rng, count: int, mean: float, cv: float, most: int):
  """Draws lengths of a log-normal distribution, cut at 2 and `most`."""
  spread = np.log(1 + cv**2)
  found = rng.lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count)
  return np.clip(found.round(), 2, most).astype(int)


def slots(lengths, widths) -> int:
  """Counts the answers that are decoded over all tokens but the first."""
  alive = (lengths[:, None] > np.arange(1, lengths.max())).sum(0)
  return sum(min(w for w in widths if w >= n) for n in alive)


def ends(config, lengths, most: int):
  """Returns ids that are forced: the end at each length, -1 before."""
  forced = np.full((*lengths.shape, most), -1, np.int32)
  np.put_along_axis(forced, lengths[..., None] - 1, config.eos_token_id, -1)
  return forced


def rollout(model, answers: int, length: int, narrow: bool):
  """Returns the compiled rollout, with or without narrowing."""
  divisors = decode_loop._DIVISORS if narrow else (1,)

  @jax.jit
  def run(params, prompt, keys, forced):
    with mock.patch.object(decode_loop, "_DIVISORS", divisors):
      return sampler.rollout(
        params,
        model.config,
        prompt,
        keys,
        answers=answers,
        length=length,
        forced=forced,
      ).tokens

  return functools.partial(run, model.params)


def measured(seconds: float, decoded: int, tokens: int) -> dict:
  return {
    "seconds": round(seconds, 4),
    "tokens_per_s": round(tokens / seconds),
    "wasted": round(1 - tokens / decoded, 3),
  }


def main() -> None:
  """Draws lengths, runs and prints the lines."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  random_model.add_flags(parser)
  add = parser.add_argument
  add("--requests", type=int, default=64)
  add("--lanes", type=int, default=16, help="answers decoded together")
  add("--prompts", type=int, default=4, help="of the rollout")
  add("--group", type=int, default=8, help="its answers per prompt")
  add("--mean", type=float, default=200.0, help="of the lengths, tokens")
  add("--cv", type=float, nargs="+", default=[0.5, 1.0])
  add("--new-tokens", type=int, default=512, help="longest answer")
  add("--repeats", type=int, default=5)
  flags = parser.parse_args()
  if flags.free_length:
    parser.error(
      "--free-length: an answer ends at a drawn length; leave it out"
    )
  numbers = ("requests", "lanes", "prompts", "group", "repeats", "mean")
  found = {name: getattr(flags, name) for name in numbers}
  for name, number in (found | {"cv": min(flags.cv)}).items():
    if not number > 0:
      parser.error(f"--{name}: expected more than 0, found {number}")
  if flags.requests % flags.lanes:
    parser.error(
      f"--requests: expected a multiple of --lanes, {flags.lanes}, found"
      f" {flags.requests}"
    )
  commands.keep_freed_memory()
  model = random_model.build(flags)
  runs = {
    name: [
      rollout(model, answers, flags.new_tokens, name == "narrowed")
      for answers in (1, flags.group)
    ]
    for name in ("whole", "narrowed")
  }
  for cv in flags.cv:
    print(json.dumps(line(model, runs, flags, cv)), flush=True)


def line(model, runs, flags, cv: float) -> dict:
  """Measures one distribution of lengths."""
  rng = np.random.RandomState(flags.seed)
  size = [flags.image_size] * 2
  most, config = flags.new_tokens, model.config

  def draw(*shape):
    count = int(np.prod(shape))
    found = draw_lengths(rng, count, flags.mean, cv, most)
    return found.reshape(shape)

  def prompts(count):
    shown = rng.randint(0, 256, (count, *size, 3), np.uint8)
    chats = [random_model.question(picture) for picture in shown]
    tokens = [len(model.processor.encode(x, "bench").tokens) for x in chats]
    room = -(-max(tokens) // 8) * 8
    return [model.processor([chat], lengths=(room,)) for chat in chats]

  def together(rows):
    return jax.tree.map(lambda *x: np.concatenate(x), *rows)

  singles, lengths = prompts(flags.requests), draw(flags.requests)
  keys = jax.random.split(jax.random.key(flags.seed), flags.requests)
  forced = ends(config, lengths, most)
  parts = [
    slice(start, start + flags.lanes)
    for start in range(0, flags.requests, flags.lanes)
  ]
  batches = [together(singles[part]) for part in parts]
  group = together(prompts(flags.prompts))
  grouped = draw(flags.prompts, flags.group)
  stats = {}

  def in_batches(run):
    return [
      run(prompt, keys[part], forced[part][:, None])
      for prompt, part in zip(batches, parts, strict=True)
    ]

  def in_lanes():
    found = [None] * flags.requests
    for one in continuous.answers(
      (model.params,),
      config,
      Scripted(),
      (
        (prompt, (key, end))
        for prompt, key, end in zip(singles, keys, forced, strict=True)
      ),
      lanes=flags.lanes,
      length=most,
    ):
      found[one.number] = one.tokens
      stats["steps"] = one.steps
    return found

  programs, decoded = {}, {}
  for name, (run, grouping) in runs.items():
    programs[name] = functools.partial(in_batches, run)
    programs[f"rollout/{name}"] = functools.partial(
      grouping, group, keys[: flags.prompts], ends(config, grouped, most)
    )

    def widths(count, narrow=name == "narrowed"):
      found = decode_loop.widths(count, most)
      return found if narrow else found[:1]

    decoded[name] = sum(
      slots(lengths[part], widths(flags.lanes)) for part in parts
    )
    decoded[f"rollout/{name}"] = slots(grouped.ravel(), widths(grouped.size))
  programs["lanes"] = in_lanes
  seconds = clock.in_turn(programs, flags.repeats)
  decoded["lanes"] = stats["steps"]
  same = [
    np.concatenate([np.asarray(x) for x in programs[name]()])
    for name in ("whole", "narrowed", "lanes")
  ]
  assert all((x == same[0]).all() for x in same), "answers differ"
  return {
    "bench": "lengths",
    "cv": cv,
    "length": {
      "mean": float(lengths.mean()),
      "cv": round(float(lengths.std() / lengths.mean()), 2),
      "max": int(lengths.max()),
    },
    **{
      name: measured(
        seconds[name],
        decoded[name],
        ((grouped if "rollout" in name else lengths) - 1).sum().item(),
      )
      for name in programs
    },
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }


if __name__ == "__main__":
  main()
