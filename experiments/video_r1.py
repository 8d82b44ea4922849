"""GRPO on the questions of Video-R1, each graded as its type wants it.

  pip install -e '.[rouge]'
  python -m mmrl.train --distributed --config experiments/video_r1.py:DIR \\
    --workdir gs://BUCKET/video_r1

DIR is the data set Video-R1-data: Video-R1-260k.json, the pictures and videos
that it names, and test.json, questions in the same form that are kept back.

Method: GRPO as in Video-R1, arXiv 2503.21776, and its published scripts: 8
answers of up to 768 tokens, 16 frames a video, of about 128 visual tokens each,
learning rate 1e-6 falling as a cosine, weight decay 0.01, KL weight 0.04,
gradients clipped at norm 5. Accuracy is by type: the letter of a choice, a
number, its distance (regression), word error rate (OCR), ROUGE (free-form).

Differs from it: no temporal reward (T-GRPO) and no length reward; 64 questions
a step in 4 updates, where it has one on each device; one prompt for all types;
a picture or video that can't be read stops the run or is left out
(data.skip_broken), where it takes another. It has not been run.
"""

import os

from experiments import recipes

PROMPT = """{question}
Think about it first, as a person would who talks to himself, doubts and checks,
between <think> and </think>. Then give the final answer between <answer> and
</answer>: only the letter of an option, only the number, or the text."""
_STEPS = 1000


def get_config(arg: str = "data"):
  """The recipe, on Qwen2.5-VL-7B.

  Args:
    arg: DIR.
  """
  config = recipes.images(arg)
  policy, test = config.models.policy, config.evaluation.benchmarks.test
  policy.max_pixels = 401408
  policy.video.fps = 2.0
  policy.video.max_frames = 16
  policy.video.max_pixels = 128 * 28 * 28
  config.data.train, test.data = (
    {
      "name": "Files",
      "path": os.path.join(arg, name),
      "format": "video_r1",
      "media": arg,
      "prompt": PROMPT,
    }
    for name in ("Video-R1-260k.json", "test.json")
  )
  config.data.lengths = (1536,)
  config.data.patches = (4 * 8 * 128,)
  config.rollout.prompts = 64
  config.rollout.length = 768
  config.rewards = {
    "accuracy": {"name": "accuracy", "weight": 1.0},
    "format": {"name": "answer_format", "weight": 1.0, "form": "think"},
  }
  test.scores = {
    "accuracy": {"name": "accuracy"},
    "format": {"name": "answer_format", "form": "think"},
  }
  config.losses.kl.weight = 0.04
  config.clip_norm = 5.0
  config.train.steps = _STEPS
  config.schedule = {
    "name": "cosine_decay_schedule",
    "init_value": 1e-6,
    "decay_steps": _STEPS * config.train.minibatches,
  }
  return config
