"""A cold start before reinforcement learning: two stages.

  python -m experiments.stages --config experiments/cold_start.py:DIR \\
    --workdir w

which is the same as

  python -m mmrl.train --config experiments/sft.py:DIR,masked \\
    --workdir w/sft && \\
  python -m mmrl.train --config experiments/jsonl.py:DIR --workdir w/rl \\
    --config.models.policy.path=w/sft/model

DIR is that of experiments/sft.py: lines with texts to learn from, and with the
right answer, by which the second stage rewards. With `:DIR,MODEL` the first
stage begins with another model than the tiny one.
"""

from experiments import jsonl, sft


def get_stages(arg: str = "data"):
  """The configs of the stages, in order.

  Args:
    arg: DIR, or DIR,MODEL.
  """
  folder, _, model = arg.partition(",")
  stages = {
    "sft": sft.get_config(f"{folder},masked"),
    "rl": jsonl.get_config(folder),
  }
  if model:
    stages["sft"].models.policy.path = model
  return stages
