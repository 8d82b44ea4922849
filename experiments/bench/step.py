"""Times GRPO steps of a random tiny Qwen2.5-VL. Prints one JSON line.

  python -m experiments.bench.step

One step is `--prompts` picture questions x `--group` sampled answers of
exactly `--new-tokens` tokens, rewards, and one optimiser update, through the
same functions that `mmrl.train` runs. `step_s` and its parts are medians over
the steps after `--warmup`; compilation is apart, in `compile_s`.

  rollout_s   pictures, prompts, answers, rewards and probes
  generate_s  of it, pictures, prompts and answers on the device
  reward_s    of it, decoding texts and computing rewards on the host
  probe_s     of it, waiting for behaviour and reference scores
  update_s    loss, gradient and optimiser

`model_flops` is the work of a step by the formula of `mmrl.plan.flops`,
padding and recomputation left out; `model_tflops_per_s` is that divided by
`step_s`, and `utilisation` its share of the device's peak, as
`update_utilisation` is for the update alone. The peak is the published one in
bfloat16, or where there is none, as on a CPU, a large float32 matrix product
timed in this process just before the steps (`experiments.bench.peak`).
"""

import argparse
from concurrent import futures
import functools
import json
import pathlib
import random
import resource
import statistics
import tempfile
import time

import jax
from PIL import Image, ImageDraw

from experiments.bench import peak, random_model
from mmrl import commands, data, hub
from mmrl import config as config_lib
from mmrl.plan import flops
from mmrl.train import collect, loop
from mmrl.train import run as run_lib
from mmrl.workdir import log as log_lib

_QUESTION = ["what", "is", "the", "colour", "of", "the", "circle?"]


def make_parser(description: str) -> argparse.ArgumentParser:
  """The flags of the model and of a step on it."""
  parser = argparse.ArgumentParser(description=description.split("\n")[0])
  add = parser.add_argument
  random_model.add_flags(parser)
  add("--prompts", type=int, default=4, help="prompts per step")
  add("--group", type=int, default=8, help="answers per prompt")
  add("--new-tokens", type=int, default=32)
  add("--micro", type=int, default=0, help="prompts per part (0 = all)")
  add("--steps", type=int, default=8)
  add("--warmup", type=int, default=2, help="steps left out of the medians")
  add("--lr", type=float, default=1e-4)
  add("--beta", type=float, default=0.0, help="KL weight")
  add("--grad-ckpt", action="store_true", help="recompute layers backward")
  add("--ral", type=float, default=0.0, help="weight of RAL's attention term")
  add("--minibatches", type=int, default=1, help="updates per step")
  add("--words", type=int, default=7, help="of a question")
  return parser


def write_questions(folder: pathlib.Path, flags: argparse.Namespace) -> str:
  """Pictures of one shape and a JSON Lines file about them."""
  rng, size, lines = random.Random(flags.seed), flags.image_size, []
  for i in range(max(32, flags.prompts)):
    colour = rng.choice(sorted(random_model.COLOURS))
    side = rng.randint(size // 4, size // 2)
    x, y = (rng.randint(2, size - side - 2) for _ in range(2))
    picture = Image.new("RGB", (size, size), (235, 240, 245))
    ImageDraw.Draw(picture).ellipse(
      [x, y, x + side, y + side], fill=random_model.COLOURS[colour]
    )
    picture.save(folder / f"{i}.png")
    question = _QUESTION * -(-flags.words // len(_QUESTION))
    question = " ".join(question[: flags.words])
    row = {"question": question, "answer": colour, "images": [f"{i}.png"]}
    lines.append(json.dumps(row) + "\n")
  (folder / "questions.jsonl").write_text("".join(lines))
  return str(folder / "questions.jsonl")


def prompt_length(processor, questions: str) -> int:
  """Tokens of the longest prompt, up to the next multiple of 8."""
  source = data.Files(path=questions)
  encoded = (processor.encode(row.messages, row.name) for row in source)
  return -(-max(len(e.tokens) for e in encoded) // 8) * 8


def build_config(flags: argparse.Namespace, model: str, questions: str):
  """The run of one arm."""
  config = config_lib.get_config()
  source = {"name": "Files", "path": questions}
  config.data.train = source
  config.evaluation.benchmarks = {}
  config.data.patches = ()
  config.compilation_cache = ""  # compiling is measured
  config.models.policy.path = model
  config.models.policy.dtype = flags.dtype
  config.models.policy.param_dtype = flags.dtype
  config.models.policy.remat = flags.grad_ckpt
  config.rollout.prompts = flags.prompts
  config.rollout.answers = flags.group
  config.rollout.length = flags.new_tokens
  config.train.minibatches = flags.minibatches
  config.train.accumulate = flags.prompts // (flags.micro or flags.prompts)
  config.schedule.value = flags.lr
  config.frozen = ()
  config.shares.every = 0
  config.losses.kl.weight = flags.beta
  if not flags.beta:
    del config.losses.kl
  if flags.ral:
    config_lib.add_ral(config, flags.ral)
  return config


def measure(flags: argparse.Namespace) -> dict:
  """Runs the steps; returns the line."""
  compilations = log_lib.Compilations()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    model = random_model.build(flags)
    hub.save(model, folder / "model")
    path = write_questions(folder, flags)
    config = build_config(flags, str(folder / "model"), path)
    config.data.lengths = (prompt_length(model.processor, path),)
    run = run_lib.build_run(config)
    fastest, source = peak.flops_per_second()
    rows, compiled = time_steps(flags, config, run, compilations)
  kept = rows[flags.warmup :]

  def median(field):
    return round(statistics.median(row[field] for row in kept), 5)

  tokens = flags.prompts * flags.group * flags.new_tokens
  parts = ("step", "rollout", "generate", "reward", "probe", "update")
  work, of_updates = (median(f"{name}_flops") for name in ("step", "update"))
  return {
    "bench": "step",
    "params": sum(x.size for x in jax.tree.leaves(model.params)),
    **{f"{part}_s": median(part) for part in parts},
    "step_min_s": round(min(row["step"] for row in kept), 5),
    "compile_s": round(compilations.seconds, 2),
    "compilations_after_warmup": compilations.count - compiled,
    "new_tokens_per_s": round(tokens / median("step")),
    "model_flops": int(work),
    "model_tflops_per_s": round(work / median("step") / 1e12, 6),
    "utilisation": round(work / median("step") / fastest, 5),
    "update_utilisation": round(of_updates / median("update") / fastest, 5),
    "peak_tflops_per_s": round(fastest / 1e12, 6),
    "peak": source,
    "peak_rss_mib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ),
    "config": vars(flags),
    "versions": {"jax": jax.__version__},
  }


def main() -> None:
  """Runs the steps and prints the line."""
  flags = make_parser(__doc__).parse_args()
  commands.keep_freed_memory()
  print(json.dumps(measure(flags)))


def step_flops(config, run, samples) -> dict[str, int]:
  """Model FLOPs of a step on questions with one picture each.

  An answer that may end early (`--free-length`) counts as a whole one.
  """
  merge = run.model_config.vision.spatial_merge_size
  layers = len(config.attention.layers)
  work = flops.step(
    run.model_config,
    grids=[
      (frames, rows * merge, columns * merge)
      for frames, rows, columns in samples.grids
    ],
    lengths=samples.prompt.mask.sum(-1).tolist(),
    answers=config.rollout.answers,
    count=config.rollout.length,
    rows_probed=layers,
    rows_trained=layers * ("attention" in config.losses),
    reference="reference" in run.method.models,
    epochs=config.train.epochs,
  )
  return {"step_flops": sum(work.values()), "update_flops": work["update"]}


def one_step(run, state, questions, step: int, pool):
  """(the state after a step, its timings, its questions)."""
  began = time.perf_counter()
  samples = next(questions)
  batch, values = collect.collect(
    *(run, state, samples, step, pool), functools.partial(next, questions)
  )
  collected = time.perf_counter()
  state, values = loop.learn(run, state, batch, values, step, 0)
  jax.block_until_ready(state)
  ended = time.perf_counter()
  row = {
    "step": ended - began,
    "rollout": collected - began,
    "generate": values["time/rollout"],
    "reward": values["time/reward"],
    "probe": values["time/probe"],
    "update": ended - collected,
  }
  return state, row, samples


def time_steps(flags, config, run, compilations):
  """(timings of each step, compilations at the end of the warm-up)."""
  state, questions = run.initial_state(), loop.read_questions(run)
  rows, compiled = [], 0
  with futures.ThreadPoolExecutor() as pool:
    for step in range(1, flags.steps + 1):
      state, row, samples = one_step(run, state, questions, step, pool)
      rows.append(row | step_flops(config, run, samples))
      if step == flags.warmup:
        compiled = compilations.count
  return rows, compiled


if __name__ == "__main__":
  main()
