"""REACT: a reward model of frames that learns from preferences. 2601.04033.

  python -m mmrl.train --config experiments/react.py:runlocal,cold \\
    --workdir runs/react/taught
  python -m mmrl.train --config experiments/react.py:runlocal --workdir RUN
  python -m experiments.stages --config experiments/react.py:DIR --workdir w

The last is the same as

  python -m mmrl.train --config experiments/react.py:DIR,cold \\
    --workdir w/cold && \\
  python -m mmrl.train --config experiments/react.py:DIR --workdir w/rl \\
    --config.models.policy.path=w/cold/model

First the policy learns to reply with a thought and a JSON object of labels and
a score; from the second pass over the data on from the object alone (`,cold`).
Then GRPO on pairs of frames: 1 format + 1 labels + 1 likelihood of what people
prefer, given the two scores. No score is compared with a right one. Advantages
are of each frame's answers.

`:runlocal` is a tiny model on drawn figures with planted faults, whose answers
have the pseudo-scores of the paper's rule; `:runlocal,cold` begins with the one
that `python -m experiments.tiny_worlds --world figures --output runs/figures`
begins with. `,all_pairs` compares every answer to one frame with every answer
to the other. `,labels` leaves the preference out of the total.

`:DIR,cold` and `:DIR` have the paper's sizes, on Qwen2.5-VL-7B: LoRA of rank
32, learning rate 5e-4, batches of 64 for two passes; then 300 steps of 256
frames x 8 answers in 4 updates, learning rate 1e-6, KL 0.04. DIR holds
train.jsonl and test.jsonl of pairs of frames:

  {"question": "what is wrong?", "images": ["a.png"], "labels": ["extra limb"],
   "compared": {"images": ["b.png"], "labels": []}, "preference": "B"}

and for `,cold` rows with `answers`, whole replies to learn. They have not been
run.

Reconstructed: paper and code couldn't be read. LoRA's alpha and layers, weights
of the rewards, clip, KL, lengths and the form of the reply are chosen here.

Plan of `:DIR` (libtpu 0.0.52): fits v5p:2x2x4, 16 chips of 95 GiB. Evaluation
takes 35.18 GiB a chip, the rollout 68.87, the probe 62.89, the update 27.30. On
v6e:4x4, of 32 GiB, it doesn't fit.
"""

import os

from experiments import quickstart, recipes, sft
from mmrl import config as config_lib

TAUGHT = "runs/react/taught"
PROMPT = """{question}
Think between <think> and </think>, then answer between <answer> and </answer>
with {"labels": [...], "score": ...}: what is wrong with the frame, and a score
from 1 (bad) to 5 (good)."""
_ARMS = ("", "all_pairs", "labels", "cold")


def get_stages(arg: str = "data"):
  """The configs of the stages, in order.

  Args:
    arg: "runlocal" or DIR, alone or with ",all_pairs" or ",labels".
  """
  folder, _, arm = arg.partition(",")
  if arm == "cold":
    raise ValueError(f"react.py:{arg}: expected no ,cold, which is one stage")
  return {"cold": get_config(f"{folder},cold"), "rl": get_config(arg)}


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR, alone or with ",all_pairs", ",labels" or ",cold".
  """
  folder, _, arm = arg.partition(",")
  if arm not in _ARMS:
    raise ValueError(
      f"react.py:{arg}: expected one argument, alone or with ,all_pairs or"
      " ,labels or ,cold"
    )
  local = recipes.is_local(folder)
  if arm == "cold":
    return _cold(folder, local)
  config = _local() if local else _large(folder)
  config.rewards = {
    "format": {"name": "frame_format", "weight": 1.0},
    "labels": {"name": "label_attribution", "weight": 1.0},
    "preference": {
      "name": "pair_preference",
      # Only logged in the arm without it.
      "weight": 0.0 if arm == "labels" else 1.0,
      "theta": 5.0,
      "mode": "all_pairs" if arm == "all_pairs" else "index",
    },
  }
  config.losses.kl.weight = 0.04
  config_lib.wrap_rollout(config, name="paired")
  return config


def _test(config, data: dict) -> None:
  """Takes pairs of frames to test on."""
  config.evaluation.benchmarks = {"test": {"name": "frames", "data": data}}


def _local():
  """GRPO on drawn figures with the model that was taught the form."""
  config = recipes.local()
  _figures(config)
  config.data.train.count, config.data.train.pairs = 10000, True
  config.models.policy.path = f"{TAUGHT}/model"
  config.rollout.prompts, config.rollout.answers = 64, 8
  config.schedule = {"name": "constant_schedule", "value": 1e-4}
  return config


def _figures(config) -> None:
  config.data.train = {"name": "Figures", "split": "train", "count": 20000}
  test = {"name": "Figures", "split": "test", "count": 250, "pairs": True}
  _test(config, test)
  config.data.lengths, config.data.patches = (136,), (196,)
  config.rollout.length = 80


def _large(folder: str):
  """The sizes of the paper."""
  config = recipes.images(folder)
  config.data.train.prompt = PROMPT
  _test(
    config,
    {
      "name": "Files",
      "path": os.path.join(folder, "test.jsonl"),
      "prompt": PROMPT,
    },
  )
  config.rollout.prompts, config.rollout.answers = 256, 8
  config.rollout.length = 1024
  config.train.steps = 300
  config.schedule.value = 1e-6
  return config


def _cold(folder: str, local: bool):
  """The first stage: likelihood of whole replies, then of their objects."""
  config = quickstart.get_config("grpo") if local else recipes.images(folder)
  if local:
    _figures(config)
    config.data.train.thoughts = True
    # Twice in 400 steps.
    config.data.train.count = 6400
    config.models.policy.path = "runs/figures/begin"
  else:
    config.data.train.prompt = PROMPT
    config.evaluation.benchmarks = {}
    config.models.policy.lora = {
      "rank": 32,
      "alpha": 64,
      "targets": "text/layers/.*",
    }
    config.frozen = ("vision/.*",)
    config.schedule.value = 5e-4
    # 6,000 replies, twice.
    config.train.steps = 188
  prompts, length = (32, 80) if local else (64, 1024)
  sft.learn_texts(config, prompts=prompts, length=length, masked=True)
  if local:
    config.frozen = ()
    config.train.steps = 400
    sft.warm_up(config, 2e-3, steps=20)
  return config
