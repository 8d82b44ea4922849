"""GRPO that teaches a model to point: boxes, rewarded by their overlap.

  python -m mmrl.train --distributed --config experiments/grounding.py:DIR \\
    --workdir gs://BUCKET/grounding

DIR holds train.jsonl and test.jsonl; an answer is a box x0, y0, x1, y1 in
pixels of the picture's file:

  {"question": "the red cup", "answer": "[12, 40, 96, 130]",
   "images": ["a.png"]}

A model writes boxes in units of its own, in which it is rewarded: Qwen2.5-VL in
pixels of the picture as it is resized for it, which is the default here;
Qwen2-VL and Qwen3-VL in thousandths of the picture: `:DIR,thousandths`, with
`--config.models.policy.path` of such a model.

Method: GRPO with the sizes of experiments/recipes.py, on Qwen2.5-VL-3B. Reward:
0.9 intersection over union + 0.1 format. Evaluated are the mean overlap and the
share of boxes with at least a half. It has not been run.
"""

import os

from experiments import recipes

PROMPT = """Find this in the picture: {question}
Think first, between <think> and </think>. Then write only its box between
<answer> and </answer>, as [x0, y0, x1, y1]."""


def get_config(arg: str = "data"):
  """The recipe.

  Args:
    arg: DIR, or DIR,thousandths.
  """
  folder, _, units = arg.partition(",")
  if units not in ("", "thousandths"):
    raise ValueError(f"grounding.py:{arg}: expected :DIR or :DIR,thousandths")
  config = recipes.images(folder)
  test = config.evaluation.benchmarks.test
  config.models.policy.path = "Qwen/Qwen2.5-VL-3B-Instruct"
  config.data.train, test.data = (
    {
      "name": "Files",
      "path": os.path.join(folder, f"{split}.jsonl"),
      "prompt": PROMPT,
    }
    for split in ("train", "test")
  )
  config.rollout.length = 512
  overlap = {"name": "box_iou", "units": units or "resized"}
  config.rewards.accuracy = {**overlap, "weight": 0.9}
  test.scores = {
    "overlap": overlap,
    "accuracy": {**overlap, "threshold": 0.5},
    "format": {"name": "answer_format", "form": "think"},
  }
  return config
