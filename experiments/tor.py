"""ToR: tokens that read the picture and tokens that reason. arXiv 2603.25077.

  python -m mmrl.train --config experiments/tor.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/tor.py:DIR --workdir RUN
  python -m mmrl.train --config experiments/tor.py:DIR,dapo --workdir RUN

`:runlocal` is the quick start with this method; one seed: 85.4 % of the test
questions after, with `:runlocal,dapo` 86.0 %, 70.0 % before. `:DIR` is
Qwen2.5-VL-7B on your questions (experiments/jsonl.py): 30 % of the tokens by
entropy with weight 1, 30 % by what the picture changes with weight 0.5, 12
answers; GRPO with clip 0.2 and k3 KL 0.01, or DAPO's clip and dynamic sampling
without the KL. It has not been run.

Reconstructed: the paper's text couldn't be read. Method and settings are those
of others' accounts and of a re-implementation.
"""

from experiments import recipes
from mmrl import config as config_lib
from mmrl.errors import UserError


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR; either with ",dapo".
  """
  folder, _, base = arg.partition(",")
  if base not in ("", "dapo"):
    raise UserError(f"tor.py:{arg}: expected one argument, or one and ,dapo")
  config = recipes.base(folder)
  if not recipes.is_local(folder):
    config.rollout.answers = 12
  if base:
    recipes.drop_kl(config)
    config.losses.policy.clip_high = 0.28
    config_lib.wrap_rollout(
      config, name="refilled", rounds=9, reward="accuracy"
    )
  config.probes.nucleus = {"name": "nucleus", "top_p": 0.95}
  config.token_weights.kinds = {
    "name": "perception_reasoning",
    "reasoning_fraction": 0.3,
    "perception_fraction": 0.3,
    "reasoning_weight": 1.0,
    "perception_weight": 0.5,
  }
  return config
