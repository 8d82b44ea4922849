"""ToR: tokens that read the picture and tokens that reason. arXiv 2603.25077.

  python -m mmrl.train --config experiments/tor.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/tor.py:DIR --workdir RUN
  python -m mmrl.train --config experiments/tor.py:DIR,dapo --workdir RUN

`:runlocal` is the quick start with this method; its result hasn't been
measured. `:DIR` is Qwen2.5-VL-7B on your questions (experiments/jsonl.py): 30 %
of the tokens by entropy with weight 1, 30 % by what the picture changes with
weight 0.5, 12 answers, and GRPO or DAPO as EasyR1 has them. It has not been
run.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", DIR, or DIR,dapo.
  """
  folder, _, base = arg.partition(",")
  if base not in ("", "dapo"):
    raise ValueError(f"tor.py:{arg}: expected :runlocal, :DIR or :DIR,dapo")
  if recipes.is_local(arg):
    config = recipes.local()
  else:
    config = recipes.images(folder)
    config.rollout.answers = 12
  if base:
    recipes.drop_kl(config)
    config.losses.policy.clip_high = 0.28
    config.rollout.refill.rounds = 9
  config.probes.nucleus = {"name": "nucleus", "top_p": 0.95}
  config.probes.blind = {"name": "image_blind"}
  config.token_weights.kinds = {
    "name": "perception_reasoning",
    "reasoning_fraction": 0.3,
    "perception_fraction": 0.3,
    "reasoning_weight": 1.0,
    "perception_weight": 0.5,
  }
  return config
