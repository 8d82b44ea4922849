"""RAL on Qwen2.5-VL-3B and long videos, on a TPU v5e pod of 16 chips.

  python -m mmrl.plan --topology v5e:4x4 \\
    --config experiments/ral_qwen2_5_vl_3b.py:DIR
  python -m mmrl.train --distributed --workdir gs://BUCKET/ral3b \\
    --config experiments/ral_qwen2_5_vl_3b.py:DIR

Method: Reinforced Attention Learning, arXiv 2602.04884, with its recipe: 8
answers of up to 768 tokens, videos of up to 128 frames at 1 frame a second and
8,192 visual tokens, learning rate 1e-5, KL weight 0.04, frozen vision tower and
projector, 51,200 questions once. DIR holds train.jsonl and test.jsonl, see
experiments/jsonl.py; the paper's data are the first 51.2k rows of
Video-R1-260k.

Differs from the paper, which trains the 7B model: sizes that the paper doesn't
give (4 updates per rollout batch, lambda = 1, 64 prompts a step) are chosen
here. It has been planned, not run.

Plan (libtpu 0.0.52): fits v5e:4x4, 16 GiB a chip. Moved is what a chip sends
and receives in collectives; the time is that of the model's FLOPs at the chips'
peak, in which moving has no part.

               evaluate  rollout   probe  prepare  update (4 of them a step)
  GiB a chip      11.02    14.99   14.32     3.04    9.56
  GB moved           19       13      22                41
  TFLOP                    11334   14834              5476
  seconds                   3.60    4.71              1.74
"""

from experiments import jsonl


def get_config(arg: str = "data"):
  """The recipe, on the 3B model.

  Args:
    arg: DIR.
  """
  config = jsonl.get_config(f"{arg},instruct")
  # As in the paper.
  config.rewards.accuracy.name = "exact_answer"
  config.evaluation.benchmarks.test.scores.accuracy.name = "exact_answer"
  config.models.policy.path = "Qwen/Qwen2.5-VL-3B-Instruct"
  config.models.policy.dtype = "bfloat16"
  config.models.policy.video.fps = 1.0
  config.models.policy.video.max_frames = 128
  # Each frame; 64 pairs of them have 128 visual tokens of 28 x 28 pixels each.
  config.models.policy.video.max_pixels = 128 * 28 * 28
  config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  config.data.lengths = (8704,)
  config.data.patches = (4 * 8192,)
  config.data.threads = 8
  config.rollout.prompts = 64
  config.rollout.length = 768
  config.train.minibatches = 4
  config.train.steps = 800
  config.checkpoint.every = 20
  config.shares.every = 0
  config.evaluation.batch = 16
  return config
