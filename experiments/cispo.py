"""CISPO: the weight is clipped, not the surrogate. arXiv 2506.13585.

  python -m mmrl.train --config experiments/cispo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/cispo.py:DIR --workdir RUN

`:runlocal` is the quick start with this method; one seed: 74.0 % of the test
questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py), no KL. It has not been run. The bounds are not the
paper's, which gives none: the weight is bounded from above at 5, as in ScaleRL
(arXiv 2510.13786).
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
    "name": "clipped_weight",
    "weight": 1.0,
    "reduce": "token_mean",
    "weight_max": 5.0,
  }
  return config
