"""GRPO on Geometry3K, as EasyR1 has it.

  pip install -e '.[data,math]'
  python -m mmrl.train --distributed --config experiments/geometry3k.py:DIR \\
    --workdir gs://BUCKET/geometry3k

DIR holds the parquet files of the data set hiyouga/geometry3k, train*.parquet
and test*.parquet: 2,101 and 601 problems with a picture each. With the package
`datasets` they are read from the hub: `:hub:hiyouga/geometry3k`.

Method: GRPO with the settings of EasyR1's example for this data: 5 answers of
up to 2,048 tokens to each of 512 questions in 4 updates, learning rate 1e-6,
weight decay 0.01, k3 KL 0.01, a vision tower that trains, 15 epochs. The reward
is 0.9 accuracy + 0.1 format: a thought in <think>, the answer in \\boxed{}.

Differs from it: math-verify compares, where it has mathruler; the prompt asks
in other words; pictures have at most 2,048 visual tokens. It has not been run.
"""

import os

from experiments import recipes

PROMPT = r"""{question}
First think it through, between <think> and </think>. Then give the final answer
in \boxed{}."""


def get_config(arg: str = "data"):
  """The recipe, on Qwen2.5-VL-7B.

  Args:
    arg: DIR, or hub:OWNER/NAME.
  """
  config = recipes.images(arg)
  test = config.evaluation.benchmarks.test
  on_hub = arg.startswith("hub:")
  config.data.train, test.data = (
    {
      "name": "Files",
      "path": f"{arg}@{split}"
      if on_hub
      else os.path.join(arg, f"{split}*.parquet"),
      "format": "easyr1",
      "prompt": PROMPT,
    }
    for split in ("train", "test")
  )
  config.rollout.answers = 5
  right = {"name": "math_answer", "block": "boxed"}
  config.rewards = {
    "accuracy": {**right, "weight": 0.9},
    "format": {"name": "answer_format", "weight": 0.1, "form": "boxed"},
  }
  test.questions = 0
  test.scores = {
    "accuracy": right,
    "format": {"name": "answer_format", "form": "boxed"},
  }
  return config
