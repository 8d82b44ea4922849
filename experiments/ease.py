"""EASE: attention of right answers, drawn to marked regions. arXiv 2605.30912.

  python -m mmrl.train --config experiments/ease.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/ease.py:DIR --workdir RUN

GRPO without a KL, clip 0.2 and 0.3, and 0.001 times the KL of visual attention,
in layer floor(2 L / 3), to Gaussians on the boxes of the question's region; on
answers whose reward exceeds 0.5 and 64 of their tokens. It is the labelled
counterpart of RAL.

`:runlocal` is the quick start with this method; the object's box is the region.
`:DIR` is Qwen2.5-VL-7B on your questions (experiments/jsonl.py), each with a
`region` of one or several boxes: 512 questions x 5 answers a step, up to 1,024
tokens, 4 updates, learning rate 1e-6. It has not been run.

Reconstructed: paper and code couldn't be read; method and settings are those of
others' accounts. The authors' boxes aren't published. Updates per step and the
format reward are EasyR1's.

Plan of `:DIR` (libtpu 0.0.52): fits v5p:2x2x4, 16 chips of 95 GiB. Evaluation
takes 33.24 GiB a chip, the rollout 88.70, the probe 40.82, the update 30.88.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  recipes.drop_kl(config)
  config.losses.policy.clip_high = 0.3
  # floor(2 L / 3) of 4 and of 28 layers.
  config.attention.layers = (2,) if recipes.is_local(arg) else (18,)
  if not recipes.is_local(arg):
    config.rollout.answers = 5
    config.rollout.length = 1024
  config.losses.evidence = {
    "name": "evidence_kl",
    "weight": 0.001,
    "reduce": "sequence_mean",
    "gate": 0.5,
    "background": 0.1,
    "sampled_tokens": 64,
    "without": "refuse",
  }
  return config
