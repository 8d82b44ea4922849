"""GSPO: one importance ratio per answer. arXiv 2507.18071.

  python -m mmrl.train --config experiments/gspo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/gspo.py:DIR --workdir RUN

`:runlocal` is the quick start with this method; one seed: 82.3 % of the test
questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py), clip widths 3e-4 and 4e-4, four updates per rollout
batch, no KL, as the paper has them. It has not been run. The token form is
`config.losses.policy.level`.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  recipes.drop_kl(config)
  config.losses.policy = {
    "name": "clipped_sequence_ratio",
    "weight": 1.0,
    "reduce": "sequence_mean",
    "level": "sequence",
    "clip_low": 3e-4,
    "clip_high": 4e-4,
  }
  return config
