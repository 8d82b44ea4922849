"""Durian: groups of like difficulty share a deviation. arXiv 2602.21743.

  python -m mmrl.train --config experiments/durian.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/durian.py:DIR --workdir RUN

`:runlocal` is the quick start with this method; one seed: 82.6 % of the test
questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with GRPO as EasyR1 has it: learning rate 1e-6, 512
questions x 8 answers, 4 updates, clip 0.2 and 0.3, dual clip 3; 12 bins of
confidence. The weights .1/.2/.7 are the best single setting of the paper's
sweep, which fixes none. It has not been run.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  local = recipes.is_local(arg)
  if not local:
    config.losses.policy.clip_high = 0.3
    config.losses.policy.dual_clip = 3.0
  config.advantage = {
    "name": "difficulty_aware",
    "bins": 0 if local else 12,  # 0: by the number of prompts
    "weights": (0.1, 0.2, 0.7),
  }
  return config
