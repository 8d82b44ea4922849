"""FIPO: tokens weighted by how what follows them moves. arXiv 2603.19835.

  python -m mmrl.train --config experiments/fipo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/fipo.py:DIR --workdir RUN

`:runlocal` is the quick start's DAPO with this method; one seed: 85.0 % of the
test questions after, 70.0 % before. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with the paper's settings for a 7B model: DAPO, 32
answers, 8 updates of 64 questions per rollout batch, answers of up to 10,240
tokens, half-life 32, weights in [0.8, 1.2], safety threshold 3. It has not been
run; the paper trains text models on mathematics.
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
    config.rollout.answers = 32
    config.rollout.length = 10240
    config.rewards.overlong.longest = 10240
    config.rewards.overlong.buffer = 2048
    config.train.minibatches = 8
    config.schedule.transition_steps = 80
  config.token_weights.future = {
    "name": "future_kl",
    "half_life": 32.0,
    "low": 0.8,
    "high": 1.2,
    "ratio_max": 10.0,
    "safety": 3.0,
  }
  return config
