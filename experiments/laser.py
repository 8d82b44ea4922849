"""LASER: rewards of looking evenly in time, and not at sinks. arXiv 2607.01707.

  python -m mmrl.train --config experiments/laser.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/laser.py:DIR --workdir RUN

Reward: accuracy + 0.3 format + 0.05 evenness + 0.1 suppression; the latter two
on right, well-formed answers from step 20 on. `:runlocal` is the quick start
with both, from step 10 on, in windows of 4 tokens, as its answers have 8.
`:DIR` is Qwen2.5-VL-7B on your questions (experiments/jsonl.py): GSPO's loss
with clip 0.2 and 0.28, KL 0.02 (k3), learning rate 2e-6, 512
questions x 8 answers a step in 2 updates, frozen vision tower, overlong
penalty. It has not been run.

Differs from the published code: there is no penalty of repetition, and no dual
clip of 10. Others
measured that these terms reward even attention, not more of it, and that in
half of the groups they are all that tells answers apart: see `times`.
Reconstructed: the penalty's weight and buffer are DAPO's shares of the length.
"""

from typing import Any

import ml_collections

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  local = recipes.is_local(arg)
  config.rewards.accuracy.weight = 1.0
  config.rewards.format.weight = 0.3
  add_rewards(config, short=local, start=10 if local else 20)
  if local:
    return config
  config.frozen = ("vision/.*",)
  config.rewards.overlong = {
    "name": "soft_overlong",
    "weight": 1.0,
    "longest": config.rollout.length,
    "buffer": config.rollout.length // 5,
  }
  config.losses.policy = {
    "name": "clipped_sequence_ratio",
    "weight": 1.0,
    "reduce": "sequence_mean",
    "level": "sequence",
    "clip_low": 0.2,
    "clip_high": 0.28,
  }
  config.losses.kl.weight = 0.02
  config.train.minibatches = 2
  config.schedule.value = 2e-6
  return config


def add_rewards(
  config: ml_collections.ConfigDict, *, short: bool, **options: Any
) -> None:
  """Adds both rewards of attention, on right, well-formed answers.

  Args:
    config: to change.
    short: whether answers have some eight tokens: then windows have 4.
    **options: of both rewards.
  """
  options |= {"times": ("accuracy", "format")}
  windows = {"window": 4, "stride": 2} if short else {}
  config.rewards.evenness = {
    "name": "visual_evenness",
    "weight": 0.05,
    **windows,
    **options,
  }
  config.rewards.suppression = {
    "name": "sink_suppression",
    "weight": 0.1,
    **options,
  }
