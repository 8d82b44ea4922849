"""What the configs of published methods begin with.

Two scales of the same run: `runlocal`, the quick start, on two CPU cores, and
a 7B model on the questions of a folder (see experiments/jsonl.py) with what
papers share that were made with the same framework.
"""

import ml_collections

from experiments import jsonl, quickstart
from mmrl import config as config_lib


def is_local(arg: str) -> bool:
  """Whether a config's argument asks for the quick start."""
  return arg == "runlocal"


def local() -> ml_collections.ConfigDict:
  """GRPO on easy-VQA with the tiny model."""
  return quickstart.get_config("grpo")


def base(arg: str) -> ml_collections.ConfigDict:
  """`local` or `images`, as a config's argument says."""
  return local() if is_local(arg) else images(arg)


def drop_kl(config: ml_collections.ConfigDict) -> None:
  """Takes out the KL to the reference, and with it the pass that it needs."""
  del config.losses["kl"]


def images(folder: str) -> ml_collections.ConfigDict:
  """GRPO on Qwen2.5-VL-7B and pictures, as EasyR1 has it by default.

  512 questions a step in 4 updates of 128, up to 2,048 tokens, learning rate
  1e-6, weight decay 0.01, k3 KL 0.01, reward 0.9 accuracy + 0.1 format, and a
  vision tower that trains. Differs from it: clip 0.2 for its 0.2 and 0.3, and
  no dual clip for its 3; 8 answers for its 5; pictures of at most 2,048 visual
  tokens and of any size below; and the answer stands between tags instead of in
  \\boxed{}.

  Args:
    folder: with train.jsonl and test.jsonl.
  """
  config = jsonl.get_config(f"{folder},instruct")
  del config.losses["attention"]
  config.models.policy.path = "Qwen/Qwen2.5-VL-7B-Instruct"
  config.models.policy.dtype = "bfloat16"
  config.models.policy.max_pixels = 2048 * 28 * 28
  config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  config.data.lengths = (2560,)
  config.data.patches = (4 * 2048,)
  config.data.threads = 8
  config.frozen = ()
  config.rollout.prompts = 512
  config.rollout.length = 2048
  config.losses.kl.weight = 0.01
  config.train.minibatches = 4
  config.train.accumulate = 4
  config.train.steps = 60
  config.schedule.value = 1e-6
  config.shares.every = 0
  return config


def dapo(folder: str) -> ml_collections.ConfigDict:
  """DAPO with the sizes of its reproductions, on Qwen2.5-VL-7B and pictures.

  As the authors of FIPO ran it (arXiv 2603.19835, table 2, and their code): 512
  questions x 16 answers a step in 16 updates of 32, learning rate 1e-6 after 10
  steps of warm-up, weight decay 0.1, no KL, clip 0.2 and 0.28, dual clip 10,
  token mean, dynamic sampling, answers of up to 20,480 tokens of which the last
  4,096 are penalised. Right answers get +1, wrong ones -1, as in verl: twice
  the accuracy, as a group's mean is subtracted anyway.

  Args:
    folder: with train.jsonl and test.jsonl.
  """
  config = images(folder)
  _dapo_loss(config)
  config.rollout.answers = 16
  config.rollout.length = 20480
  # Ten drawings in all.
  config_lib.wrap_rollout(config, name="refilled", rounds=9, reward="accuracy")
  config.rewards = {
    "accuracy": {"name": "exact_answer", "weight": 2.0},
    "overlong": {
      "name": "soft_overlong",
      "weight": 1.0,
      "longest": 20480,
      "buffer": 4096,
    },
  }
  config.train.minibatches = 16
  config.train.accumulate = 1
  config.optimizer.weight_decay = 0.1
  config.schedule = {
    "name": "linear_schedule",
    "init_value": 0.0,
    "end_value": 1e-6,
    "transition_steps": 160,
  }
  return config


def dapo_local() -> ml_collections.ConfigDict:
  """DAPO on easy-VQA with the tiny model."""
  config = local()
  _dapo_loss(config)
  config_lib.wrap_rollout(config, name="refilled", rounds=1, reward="accuracy")
  config.rewards.overlong = {
    "name": "soft_overlong",
    "weight": 1.0,
    "longest": 10,
    "buffer": 2,
  }
  return config


def _dapo_loss(config: ml_collections.ConfigDict) -> None:
  """No KL, and a clip of [0.8, 1.28], of at most 10 where A < 0."""
  drop_kl(config)
  config.losses.policy.clip_high = 0.28
  config.losses.policy.dual_clip = 10.0
