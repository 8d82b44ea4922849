"""More advantage on tokens that the sampler found unlikely. arXiv 2603.22117.

  python -m mmrl.train --config experiments/low_probability.py:runlocal \\
    --workdir RUN
  python -m mmrl.train --config experiments/low_probability.py:DIR \\
    --workdir RUN

`:runlocal` is the quick start's DAPO with this method; one seed: 85.5 % of the
test questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with DAPO's recipe, answers of up to 8,192 tokens and
alpha = 0.2, the paper's for Qwen2.5-Math-7B (0.1 for Qwen3-8B). It has not been
run; the paper trains text models on mathematics. Its test-time half is
experiments/extrapolation.py.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  if recipes.is_local(arg):
    config = recipes.dapo_local()
  else:
    config = recipes.dapo(arg)
    config.rollout.length = 8192
    config.rewards.overlong.longest = 8192
  config.token_weights.unlikely = {
    "name": "low_probability",
    "alpha": 0.2,
    "sign": "both",
  }
  return config
