"""EgoReasoner: chains that a program checks, then GRPO. arXiv 2603.06561.

  python -m experiments.stages --config experiments/egoreasoner.py:DIR \\
    --workdir w

which is the same as

  python -m mmrl.train --config experiments/egoreasoner.py:DIR,sft \\
    --workdir w/sft && \\
  python -m mmrl.train --config experiments/egoreasoner.py:DIR \\
    --workdir w/rl --config.models.policy.path=w/sft/model

First the policy learns chains of thought in the steps of its task, written from
the facts (`mmrl.chains`); then GRPO with

  r = accuracy + 0.5 grounding + 0.5 logic + 0.1 structure

of the option, of the chain's names and times against the scene, of its lines
among themselves and with the option, and of its form. `,gated` counts grounding
and logic of right answers only. Each score is reported by task, and beside it
what the most frequent right choice gives: "0" is right for 40 % of the counted
interactions.

`:runlocal` is GRPO on `mmrl.worlds.kitchens`, all six tasks, with a tiny model
that has been taught their chains:

  python -m experiments.tiny_worlds --world kitchens --output runs/kitchens
  python -m mmrl.train --config experiments/egoreasoner.py:runlocal \\
    --workdir RUN

`:DIR` is Qwen2.5-VL-3B on files in HD-EPIC's form: DIR/train and DIR/test hold
its `vqa-benchmark` files, DIR/videos the videos, and DIR/annotations, if it is
there, `assoc_info.json` and `mask_info.json`. `python -m mmrl.worlds --world
kitchens --folder` writes such files; `metadata` in them has the facts that
HD-EPIC's own files lack. It has not been run.

Reconstructed: formulas, weights and sizes, from others' accounts. The paper's
teacher, Gemini, is replaced by a rule; its training data aren't published, and
HD-EPIC is what it tests on.

Plan of `:DIR` (libtpu 0.0.52): fits v5e:4x4, 16 chips of 16 GiB. Evaluation
takes 11.42 GiB a chip, the rollout 14.41, the probe 9.36, the update 12.26.
"""

import os

from experiments import recipes, sft
from mmrl.chains import writing

PROMPT = """{question}
Reason in lines between <think> and </think>: Entities, Event, Move, Count,
Clock, Fixture, Rest. Then write the letter between <answer> and </answer>."""


def get_stages(arg: str = "data"):
  """The configs of the stages, in order.

  Args:
    arg: DIR, or DIR,gated.
  """
  folder, _, arm = arg.partition(",")
  if arm == "sft":
    raise ValueError(
      f"egoreasoner.py:{arg}: expected no ,sft, which is one stage"
    )
  return {"sft": get_config(f"{folder},sft"), "rl": get_config(arg)}


def get_config(arg: str = "data"):
  """The config of a stage.

  Args:
    arg: "runlocal" or DIR; DIR,sft is the first stage, all others, alone or
      with ",gated", the second.
  """
  folder, _, arm = arg.partition(",")
  local = recipes.is_local(folder)
  if arm not in ("", "sft", "gated") or (arm == "sft" and local):
    raise ValueError(
      f"egoreasoner.py:{arg}: expected one argument, or one and ,gated, or"
      " DIR,sft"
    )
  config = _local() if local else _large(folder)
  scores = {
    "accuracy": {"name": "first_option", "strict": True},
    "steps": {"name": "chain_steps", "grounding": 0.5, "logic": 0.5},
    "structure": {"name": "chain_structure"},
  }
  config.evaluation.benchmarks.test.scores = scores
  if arm == "sft":
    _learn_chains(config)
    return config
  config.rewards = {
    "accuracy": {**scores["accuracy"], "weight": 1.0},
    "steps": {
      **scores["steps"],
      "weight": 1.0,
      "times": ("accuracy",) if arm == "gated" else (),
    },
    "structure": {**scores["structure"], "weight": 0.1},
    # Only logged.
    "grounding": {"name": "chain_part", "weight": 0.0, "part": "grounding"},
    "logic": {"name": "chain_part", "weight": 0.0, "part": "logic"},
  }
  config.losses.policy.reduce = "sequence_mean"
  config.losses.kl.reduce = "sequence_mean"
  return config


def _learn_chains(config) -> None:
  """Sets likelihood of the chains instead of GRPO."""
  config.data.train.thoughts = True
  sft.learn_texts(config, prompts=64, length=config.rollout.length)
  config.train.accumulate = 4
  config.train.steps = 100
  sft.warm_up(config, 1e-5, steps=10)


def _local():
  """The six tasks in drawn kitchens, with the tiny model."""
  config = recipes.local()
  config.models.policy.path = "runs/kitchens/questions/model"
  config.data.train, config.evaluation.benchmarks.test.data = (
    {
      "name": "Kitchens",
      "split": split,
      "count": count,
      "kinds": tuple(writing.TEMPLATES),
      "fps": 1.0,
      "thoughts": False,
    }
    for split, count in (("train", 20000), ("L1", 300))
  )
  config.evaluation.benchmarks.test.questions = 0
  config.evaluation.batch = 30
  config.data.lengths, config.data.patches = (896,), (3136,)
  config.frozen = ()
  config.rollout.prompts, config.rollout.answers = 16, 8
  config.rollout.length = 144
  config.train.minibatches = 2
  config.train.accumulate = 4
  config.schedule.peak_value = 3e-4
  config.shares.every = 0
  return config


def _large(folder: str):
  """The sizes of a run on HD-EPIC's form."""
  config = recipes.images(folder)
  policy = config.models.policy
  policy.path = "Qwen/Qwen2.5-VL-3B-Instruct"
  policy.max_pixels = 0
  # Chosen: up to a frame in two seconds of a minute, 64 tokens each.
  policy.video.fps = 1.0
  policy.video.max_frames = 64
  policy.video.max_pixels = 64 * 28 * 28
  annotations = os.path.join(folder, "annotations")
  config.data.train, config.evaluation.benchmarks.test.data = (
    {
      "name": "HdEpic",
      "path": os.path.join(folder, split),
      "media": os.path.join(folder, "videos"),
      "annotations": annotations if os.path.isdir(annotations) else None,
      "thoughts": False,
      "prompt": PROMPT,
    }
    for split in ("train", "test")
  )
  config.evaluation.benchmarks.test.questions = 0
  config.data.lengths, config.data.patches = (2560,), (32 * 4 * 64,)
  config.rollout.prompts, config.rollout.answers = 64, 8
  config.rollout.length = 1024
  config.losses.kl.weight = 0.04
  config.train.minibatches = 2
  # On 16 chips 64 prompts in 2 updates are 2 each.
  config.train.accumulate = 2
  # Once over 16 thousand questions.
  config.train.steps = 250
  return config
