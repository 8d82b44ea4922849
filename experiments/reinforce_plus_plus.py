"""REINFORCE++: token returns, whitened over the whole batch.

  python -m mmrl.train --config experiments/reinforce_plus_plus.py:runlocal \\
    --workdir RUN
  python -m mmrl.train --config experiments/reinforce_plus_plus.py:DIR \\
    --workdir RUN

arXiv 2501.03262. `:runlocal` is the quick start with this method; one seed:
74.2 % of the test questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on
your questions (experiments/jsonl.py), clip 0.2, KL weight 0.001 inside the
reward, no discount, as the paper has them. It has not been run.
REINFORCE++-baseline is `config.advantage.baseline`.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  del config.losses["kl"]
  config.probes.reference = {"name": "reference"}
  config.advantage = {
    "name": "reinforce_plus_plus",
    "beta": 0.001,
    "gamma": 1.0,
    "baseline": False,
  }
  config.losses.policy.reduce = "sequence_mean"
  return config
