"""Times latent segments and masked visual tokens. Prints a JSON line each.

  python -m experiments.bench.latent

On a random tiny model, by default of the size that other benches have:

  score     forward and backward pass over given answers of `--length` tokens,
            two segments of 16 among them, over that of as many tokens of text
  decode    greedy decoding of a model with latent tokens that opens no segment,
            over that of the model without
  visual    update with reconstruction of masked visual tokens, over that of
            supervised learning alone: time, and most memory over the start

Programs of a line are run in turn; medians of `--repeats`.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, random_model, step
from mmrl import commands, hub, models
from mmrl.hub import latent_tokens
from mmrl.models.passes import segments
from mmrl.models.policy import score
from mmrl.rollouts import sampler
from mmrl.rollouts.source import Request
from mmrl.train import loop
from mmrl.train import run as run_lib


def prompts_of(model: hub.Model, flags: argparse.Namespace):
  """Prompts of one picture each."""
  rng = np.random.default_rng(flags.seed)
  size = (flags.image_size, flags.image_size, 3)
  chats = [
    [
      {
        "role": "user",
        "content": [
          {"type": "image", "image": rng.integers(0, 256, size, np.uint8)},
          {"type": "text", "text": "what is the colour of the circle?"},
        ],
      }
    ]
    for _ in range(flags.prompts)
  ]
  return jax.tree.map(jnp.asarray, model.processor(chats))


def scored(model: hub.Model, flags: argparse.Namespace) -> dict[str, float]:
  """Seconds of forward and backward passes, with segments and without."""
  latent = latent_tokens.add(model, segments=2)
  prompt, rng = prompts_of(model, flags), np.random.default_rng(1)
  shape = flags.prompts, 1, flags.length
  tokens = rng.integers(0, 256, shape)
  with_segments = tokens.copy()
  own = segments.segment(latent.config.latent)
  for row in with_segments[:, 0]:
    second = rng.integers(30, flags.length - len(own))
    for at in (0, second):
      row[at : at + len(own)] = own

  @functools.partial(jax.jit, static_argnums=(1,))
  def gradient(params, config, prompt, tokens):
    def loss(text):
      whole = params | {"text": text}
      visual = models.vision(whole, config, prompt.patches)
      prefix = models.prefill(whole, config, prompt, visual)
      return -score(whole, config, prefix, tokens).logprobs.mean()

    return jax.grad(loss)(params["text"])

  arms = {"text": (model, tokens), "latent": (latent, with_segments)}
  return clock.in_turn(
    {
      name: functools.partial(
        gradient, one.params, one.config, prompt, jnp.asarray(ids)
      )
      for name, (one, ids) in arms.items()
    },
    flags.repeats,
  )


def decoded(model: hub.Model, flags: argparse.Namespace) -> dict[str, float]:
  """Seconds of greedy decoding to the longest answer."""
  latent = latent_tokens.add(model)
  # Equal vocabularies, and no segment: `<latent>` is never the most likely.
  table = latent.params["text"]["embed"]["embedding"]
  table = table.at[latent.config.latent.token_id].set(0.0)
  text = latent.params["text"] | {"embed": {"embedding": table}}
  params = latent.params | {"text": text}
  plain = dataclasses.replace(latent.config, latent=None)
  prompt = prompts_of(model, flags)

  @functools.partial(jax.jit, static_argnums=(1,))
  def decode(params, config, prompt, key):
    return sampler.rollout(
      *(params, config, prompt, key),
      answers=1,
      length=flags.length,
      temperature=0.0,
    ).tokens

  key = jax.random.key(0)
  return clock.in_turn(
    {
      name: functools.partial(decode, params, config, prompt, key)
      for name, config in (("text", plain), ("latent", latent.config))
    },
    flags.repeats,
  )


def updated(flags, folder: pathlib.Path, masked: bool) -> dict[str, float]:
  """Seconds and memory of an update of supervised learning."""
  path = step.write_questions(folder, flags)
  lines = pathlib.Path(path).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  text = "what is the colour of the circle? " * 3
  for row in rows:
    row["answers"] = [text]
  pathlib.Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows))
  config = step.build_config(flags, str(folder / "model"), path)
  config.data.lengths = ()
  config.frozen = ("vision/(?!merger).*",)
  config.rewards = {}
  config.rollout = {
    "name": "given",
    "prompts": flags.prompts,
    "answers": 1,
    "length": flags.length,
    "mask_truncated": False,
  }
  config.losses = {
    "likelihood": {"name": "likelihood", "weight": 1.0, "reduce": "token_mean"}
  }
  config.models = {
    "policy": config.models.policy,
    "reference": {"name": "Initial"},
  }
  config.models.policy.mixed_attention = masked
  if masked:
    config.models.average = {"name": "Average"}
    config.losses.reconstruction = {
      "name": "visual_reconstruction",
      "weight": 1.0,
      "reduce": "prompt_mean",
      "steps": 100,
      "mask_ratio": 0.4,
    }
  run = run_lib.build_run(config, jax.devices()[:1])
  questions, state = loop.read_questions(run), run.initial_state()
  samples = next(questions)
  request = Request(state, samples, jax.random.key(0), None, None)
  answers, _ = run.source.collect(request)
  draw = np.arange(flags.prompts, dtype=np.int32)
  batch = answers.batch.with_fields(draw=run.layout.put(draw))
  rewards = run.layout.put(np.zeros(answers.mask.shape[:2], np.float32))
  mask, fields = run.programs.prepare(batch, rewards, jax.random.key(0))
  batch = dataclasses.replace(batch.with_fields(**fields), mask=mask)

  def one():
    nonlocal state
    state, metrics = run.programs.update(state, run.fixed, batch, 0)
    return metrics

  jax.block_until_ready(one())
  with clock.Peak() as peak:
    seconds = clock.seconds(one, repeats=flags.repeats)
  questions.close()
  return {"s": seconds, "bytes": peak.over_start}


def ratio(bench: str, seconds: dict[str, float]) -> None:
  """Prints a line of two programs."""
  line = {f"{name}_s": round(x, 4) for name, x in seconds.items()}
  found = seconds["latent"] / seconds["text"]
  print(json.dumps({"bench": bench, **line, "ratio": round(found, 3)}))


def main() -> None:
  """Prints a line for each."""
  parser = step.make_parser(__doc__)
  parser.set_defaults(prompts=8, group=1)
  parser.add_argument("--length", type=int, default=112, help="of an answer")
  parser.add_argument("--repeats", type=int, default=8)
  parser.add_argument("--only", default="score,decode,visual")
  flags = parser.parse_args()
  commands.keep_freed_memory()
  model, chosen = random_model.build(flags), flags.only.split(",")
  if "score" in chosen:
    ratio("latent_score", scored(model, flags))
  if "decode" in chosen:
    ratio("latent_decode", decoded(model, flags))
  if "visual" in chosen:
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      hub.save(model, folder / "model")
      arms = {
        arm: updated(flags, folder, masked=arm == "masked")
        for arm in ("plain", "masked")
      }
      line = {
        f"{a}_{k}": round(x, 4) for a, v in arms.items() for k, x in v.items()
      }
      found = arms["masked"]["s"] / arms["plain"]["s"]
      print(json.dumps({"bench": "visual", **line, "ratio": round(found, 3)}))


if __name__ == "__main__":
  main()
