"""SEED-Bench-R1: GRPO on what to do next in a video. arXiv 2503.24376.

  python -m mmrl.train --config experiments/seed_bench_r1.py:DIR --workdir RUN
  python -m mmrl.train --config experiments/seed_bench_r1.py:DIR,sft ...
  python -m mmrl.train --config experiments/seed_bench_r1.py:DIR,care ...

A video of progress, a picture of now, a goal and four actions; the reward is
the right letter in the first answer block, and there is none for the form. One
update per batch, without a clip, and a KL of 0.1 whose log-ratio is clamped to
11. The benchmarks L1, L2 and L3 are other videos of training's kitchens, other
kitchens, and other goals; each is reported by domain and over all of its
questions, beside what the texts alone allow.

DIR is the data set as published: annotations/training_6k.jsonl,
training_with_cot_6k.jsonl for `,sft`, validation_L1.jsonl to _L3.jsonl, videos/
and images/. Qwen2-VL-7B, every frame and picture 252 x 252 pixels, 2 frames a
second and 4 to 16 of them, 8 questions x 8 answers of up to 256 tokens,
learning rate 1e-6 falling to 0, 750 steps. Training rows whose clip
can't be read are left out and counted before the run; one of a single frame is
shown as that frame, for which the published code has an error. `,sft` is
likelihood of the texts with 128 of them a step, 2e-5 as a cosine after a tenth
of warm-up.

`,care` is GRPO-CARE (arXiv 2506.16141): no KL; right answers that a moving
average of the policy finds likely after their reasoning get half of their
accuracy on top. Qwen2.5-VL-7B, answers of up to 768 tokens, top-p 0.95, reward
accuracy + format.

`:runlocal`, `:runlocal,sft` and `:runlocal,care` are on `mmrl.worlds.kitchens`,
with a tiny model that has been taught their questions:

  python -m experiments.tiny_worlds --world kitchens --output runs/kitchens

Differs from the published runs: greedy answers are evaluated, not sampled ones
at temperature 1; 8 answers and 256 tokens are defaults of their trainer;
`,care` has SEED-Bench-R1's frames. `first_option` with strict=False takes any
word that begins with the letter, as the published code does; `strict` is
reported beside it. None of the large ones has been run.

Plan of `:DIR` (libtpu 0.0.52): fits v5p:2x2x2, 8 chips of 95 GiB. Evaluation
takes 41.00 GiB a chip, the rollout 34.43, the probe 28.95, the update 33.70. On
v6e:2x4, of 32 GiB, it doesn't fit.
"""

import os

from experiments import jsonl, recipes, sft
from mmrl import config as config_lib

PROMPT = """{question}
Write your reasoning between <think> and </think>, and then the letter of the
action between <answer> and </answer>."""
_LEVELS = ("L1", "L2", "L3")
_ARMS = ("", "sft", "care")


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR, alone or with ",sft" or ",care".
  """
  folder, _, arm = arg.partition(",")
  local = recipes.is_local(folder)
  if arm not in _ARMS:
    raise ValueError(
      f"seed_bench_r1.py:{arg}: expected one argument, or one and ,sft or ,care"
    )
  config = _local() if local else _large(folder)
  if arm == "sft":
    _learn_texts(config, folder)
  else:
    _reward(config)
  if arm == "care":
    _care(config, local)
  return config


def _benchmarks(config, data) -> None:
  """Sets the three levels; `data` makes the source of one."""
  right = {"name": "first_option", "strict": False}
  config.evaluation.benchmarks = {
    level: {
      "name": "questions",
      "data": data(level),
      "questions": 0,
      "scores": {
        "accuracy": right,
        "strict": {"name": "first_option", "strict": True},
        "format": {"name": "answer_format", "form": "begin"},
      },
    }
    for level in _LEVELS
  }


def _reward(config) -> None:
  """Sets reward, advantage and loss."""
  config.rewards = {
    "accuracy": {"name": "first_option", "weight": 1.0, "strict": False},
    # Only logged, as in the released script.
    "format": {"name": "answer_format", "weight": 0.0, "form": "begin"},
  }
  config.advantage.epsilon = 1e-4
  config.losses = {
    "policy": {
      "name": "on_policy_ratio",
      "weight": 1.0,
      "reduce": "sequence_mean",
    },
    "kl": {
      "name": "reference_kl",
      "weight": 0.1,
      "reduce": "sequence_mean",
      "estimator": "k3",
      "clamp": 11.0,
    },
  }
  config.train.minibatches = 1


def _care(config, local: bool) -> None:
  """Adds GRPO-CARE's bonus, and sets what its run has otherwise."""
  recipes.drop_kl(config)
  config.models.average = {"name": "Average", "decay": 0.995, "every": 10}
  config.rewards.accuracy.strict = True
  config.rewards.format = {
    "name": "answer_format",
    "weight": 1.0,
    "form": "exact",
  }
  config.rewards.bonus = {
    "name": "consistency_bonus",
    "weight": 1.0,
    "coefficient": 0.5,
    "cap": 0.95,
    "margin": 0.01,
  }
  config_lib.wrap_rollout(config, name="tagged", tag="answer")
  if local:
    return
  config.models.policy.path = "Qwen/Qwen2.5-VL-7B-Instruct"
  config.rollout.length = 768
  config.rollout.of.top_p = 0.95
  config.optimizer.weight_decay = 0.01
  config.clip_norm = 5.0
  config.schedule = {
    "name": "cosine_decay_schedule",
    "init_value": 1e-6,
    "decay_steps": config.train.steps,
  }


def _large(folder: str):
  """The sizes of the published run."""
  config = recipes.images(folder)
  policy = config.models.policy
  policy.path = "Qwen/Qwen2-VL-7B-Instruct"
  policy.max_pixels = 0
  policy.side = 256
  policy.video = {
    "fps": 2.0,
    "frames": 0,
    "max_frames": 16,
    "max_pixels": 0,
    "uniform": True,
  }

  def data(name: str) -> dict:
    return {
      "name": "Files",
      "path": os.path.join(folder, "annotations", f"{name}.jsonl"),
      "format": "seed_bench_r1",
      "media": folder,
      "prompt": PROMPT,
    }

  config.data.train = data("training_6k")
  _benchmarks(config, lambda level: data(f"validation_{level}"))
  # One bad clip among thousands isn't to stop a run half-way.
  config.data.skip_broken = True
  # 9 x 9 tokens of a picture and of two frames each.
  config.data.lengths, config.data.patches = (1280,), (3072,)
  config.rollout.prompts, config.rollout.answers = 8, 8
  config.rollout.length = 256
  config.optimizer.weight_decay = 0.0
  config.train.steps = 750
  config.train.accumulate = 1
  config.schedule = {
    "name": "linear_schedule",
    "init_value": 1e-6,
    "end_value": 0.0,
    "transition_steps": 750,
  }
  return config


def _local():
  """Planning in drawn kitchens, with the tiny model."""
  config = recipes.local()
  config.models.policy.path = "runs/kitchens/questions/model"

  def data(split: str, count: int) -> dict:
    return {
      "name": "Kitchens",
      "split": split,
      "count": count,
      "kinds": ("planning",),
      "fps": 1.0,
      "thoughts": split == "train",
    }

  config.data.train = data("train", 20000)
  _benchmarks(config, lambda level: data(level, 200))
  config.data.lengths, config.data.patches = (896,), (3136,)
  config.frozen = ()
  config.rollout.prompts, config.rollout.answers = 16, 8
  config.rollout.length = 112
  config.evaluation.batch = 50
  config.schedule.peak_value = 3e-4
  config.train.accumulate = 4
  config.shares.every = 0
  return config


def _learn_texts(config, folder: str) -> None:
  """Sets likelihood of the texts of the data instead of GRPO."""
  local = recipes.is_local(folder)
  # The local arm sees the questions that GRPO sees.
  prompts = config.rollout.prompts if local else 128
  sft.learn_texts(config, prompts=prompts, length=config.rollout.length)
  config.train.accumulate = 4
  if not local:
    config.data.train.path = jsonl.find(
      os.path.join(folder, "annotations"), "training_with_cot_6k"
    )
    # Six thousand texts once; the longest that their teachers wrote aren't
    # known.
    config.rollout.length = 1024
    config.train.steps = 47
  peak = 1e-3 if local else 2e-5
  sft.warm_up(config, peak, steps=config.train.steps // 10)
