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

`model_flops` is the work of a step by the formula of `mmrl.models.flops`,
padding and recomputation left out; `model_tflops_per_s` is that divided by
`step_s`, and `utilisation` its share of the device's peak, as
`update_utilisation` is for the update alone. The peak is the published one in
bfloat16, or where there is none, as on a CPU, a large float32 matrix product
timed in this process just before the steps (`experiments.bench.peak`).
"""

import argparse
from concurrent import futures
import json
import pathlib
import random
import resource
import statistics
import tempfile
import time

import jax
from PIL import Image, ImageDraw
import tokenizers
import transformers

from experiments import tiny_model
from experiments.bench import peak
from mmrl import data, models
from mmrl.models import config as config_lib
from mmrl.models import flops, pictures
from mmrl.models.families import FAMILIES
from mmrl.models.processor import Processor
from mmrl.train import defaults, loop, metrics
from mmrl.train import run as run_lib

_COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 180, 70),
  "blue": (50, 80, 220),
  "yellow": (235, 210, 40),
}


def parse_flags() -> argparse.Namespace:
  """The sizes."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  add = parser.add_argument
  add("--hidden", type=int, default=128, help="text width")
  add("--layers", type=int, default=4, help="text layers")
  add("--heads", type=int, default=4)
  add("--kv-heads", type=int, default=2)
  add("--intermediate", type=int, default=0, help="0 = 3 x hidden")
  add("--vision-hidden", type=int, default=64)
  add("--vision-depth", type=int, default=2)
  add("--vision-heads", type=int, default=4)
  add("--vocab", type=int, default=512, help="ignored with --tokenizer")
  add("--tokenizer", default="", help="path of a tokenizer.json")
  add("--untied", action="store_true", help="separate output head")
  add("--image-size", type=int, default=112)
  add("--dtype", default="float32", choices=["float32", "bfloat16"])
  add("--prompts", type=int, default=4, help="prompts per step")
  add("--group", type=int, default=8, help="answers per prompt")
  add("--new-tokens", type=int, default=32)
  add("--micro", type=int, default=0, help="prompts per part (0 = all)")
  add("--steps", type=int, default=8)
  add("--warmup", type=int, default=2, help="steps left out of the medians")
  add("--lr", type=float, default=1e-4)
  add("--beta", type=float, default=0.0, help="KL weight")
  add("--grad-ckpt", action="store_true", help="recompute layers backward")
  add("--free-length", action="store_true", help="let an answer end")
  add("--ral", type=float, default=0.0, help="weight of RAL's attention term")
  add("--minibatches", type=int, default=1, help="updates per step")
  add("--seed", type=int, default=0)
  return parser.parse_args()


def build_model(flags: argparse.Namespace) -> models.Model:
  """A random model of the asked size, with its processor."""
  texts = [f"what is the colour of the {c} shape?" for c in _COLOURS] * 9
  tokenizer = tiny_model.build_tokenizer(texts, flags.vocab)
  size = flags.vocab
  if flags.tokenizer:
    inner = tokenizers.Tokenizer.from_file(flags.tokenizer)
    inner.add_special_tokens(tiny_model.SPECIALS)
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = tiny_model.CHAT_TEMPLATE
    size = -(-len(tokenizer) // 64) * 64
  half = flags.hidden // flags.heads // 2
  time_part = half // 4
  height = (half - time_part) // 2
  ids = tokenizer.convert_tokens_to_ids
  config = config_lib.ModelConfig(
    text=config_lib.TextConfig(
      vocab_size=size,
      hidden_size=flags.hidden,
      intermediate_size=flags.intermediate or 3 * flags.hidden,
      num_hidden_layers=flags.layers,
      num_attention_heads=flags.heads,
      num_key_value_heads=flags.kv_heads,
      head_dim=flags.hidden // flags.heads,
      mrope_section=(time_part, height, half - time_part - height),
    ),
    vision=config_lib.VisionConfig(
      depth=flags.vision_depth,
      hidden_size=flags.vision_hidden,
      intermediate_size=3 * flags.vision_hidden,
      num_heads=flags.vision_heads,
      out_hidden_size=flags.hidden,
      fullatt_block_indexes=(flags.vision_depth - 1,),
    ),
    tie_word_embeddings=not flags.untied,
    image_token_id=ids("<|image_pad|>"),
    video_token_id=ids("<|video_pad|>"),
    vision_start_token_id=ids("<|vision_start|>"),
    vision_end_token_id=ids("<|vision_end|>"),
    # A placeholder can't be sampled, so it never ends an answer.
    eos_token_id=ids("<|im_end|>" if flags.free_length else "<|video_pad|>"),
    pad_token_id=ids("<|endoftext|>"),
  )
  area = flags.image_size**2
  picture = pictures.PictureConfig(min(56 * 56, area), max(area, 56 * 56))
  params = models.init(jax.random.key(flags.seed), config)
  video = FAMILIES[config.family].video
  processor = Processor(tokenizer, config, picture, video)
  return models.Model(config, params, processor)


def write_questions(folder: pathlib.Path, flags: argparse.Namespace) -> str:
  """Pictures of one shape and a JSON Lines file about them."""
  rng, size, lines = random.Random(flags.seed), flags.image_size, []
  for i in range(max(32, flags.prompts)):
    colour = rng.choice(sorted(_COLOURS))
    side = rng.randint(size // 4, size // 2)
    x, y = (rng.randint(2, size - side - 2) for _ in range(2))
    picture = Image.new("RGB", (size, size), (235, 240, 245))
    ImageDraw.Draw(picture).ellipse(
      [x, y, x + side, y + side], fill=_COLOURS[colour]
    )
    picture.save(folder / f"{i}.png")
    question = "what is the colour of the circle?"
    row = {"question": question, "answer": colour, "images": [f"{i}.png"]}
    lines.append(json.dumps(row) + "\n")
  (folder / "questions.jsonl").write_text("".join(lines))
  return str(folder / "questions.jsonl")


def build_config(flags: argparse.Namespace, model: str, questions: str):
  """The run of one arm."""
  config = defaults.get_config()
  source = {"name": "JsonLines", "path": questions}
  config.data.train = config.data.test = source
  config.data.lengths = config.data.patches = ()
  config.model.path = model
  config.model.dtype = flags.dtype
  config.model.remat = flags.grad_ckpt
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
    del config.losses.kl, config.probes.reference
  if flags.ral:
    defaults.add_ral(config, flags.ral)
  return config


def main() -> None:
  """Runs the steps and prints the line."""
  flags = parse_flags()
  compilations = metrics.Compilations()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    model = build_model(flags)
    models.save(model, folder / "model")
    path = write_questions(folder, flags)
    config = build_config(flags, str(folder / "model"), path)
    run = run_lib.build_run(config)
    fastest, source = peak.flops_per_second()
    rows, compiled = time_steps(flags, config, run, compilations)
  kept = rows[flags.warmup :]

  def median(field):
    return round(statistics.median(row[field] for row in kept), 5)

  tokens = flags.prompts * flags.group * flags.new_tokens
  parts = ("step", "rollout", "generate", "reward", "probe", "update")
  work, of_updates = (median(f"{name}_flops") for name in ("step", "update"))
  line = {
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
  print(json.dumps(line))


def step_flops(config, run, samples) -> dict[str, int]:
  """Model FLOPs of a step on questions with one picture each.

  An answer that may end early (`--free-length`) counts as a whole one.
  """
  merge = run.model_config.vision.spatial_merge_size
  layers = len(config.attention.layers)
  work = flops.step(
    run.model_config,
    grids=[
      (1, rows * merge, columns * merge) for rows, columns in samples.grids
    ],
    lengths=samples.prompt.mask.sum(-1).tolist(),
    answers=config.rollout.answers,
    count=config.rollout.length,
    rows_probed=layers,
    rows_trained=layers * ("attention" in config.losses),
    reference="reference" in config.probes,
    epochs=config.train.epochs,
  )
  return {"step_flops": sum(work.values()), "update_flops": work["update"]}


def time_steps(flags, config, run, compilations):
  """(timings of each step, compilations at the end of the warm-up)."""
  state = run.initial_state()
  questions = data.batches(
    run.train_source,
    run.processor,
    batch_size=flags.prompts,
    answer_length=flags.new_tokens,
    seed=flags.seed,
  )
  rows, compiled = [], 0
  with futures.ThreadPoolExecutor() as pool:
    for step in range(1, flags.steps + 1):
      began = time.perf_counter()
      samples = next(questions)
      batch, values = loop.collect(config, run, state, samples, step, pool)
      collected = time.perf_counter()
      state, values = loop.learn(config, run, state, batch, values, step, 0)
      jax.block_until_ready(state)
      ended = time.perf_counter()
      rows.append(
        {
          "step": ended - began,
          "rollout": collected - began,
          "generate": values["time/rollout"],
          "reward": values["time/reward"],
          "probe": values["time/probe"],
          "update": ended - collected,
          **step_flops(config, run, samples),
        }
      )
      if step == flags.warmup:
        compiled = compilations.count
  return rows, compiled


if __name__ == "__main__":
  main()
