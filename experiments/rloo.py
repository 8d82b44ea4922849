"""RLOO: REINFORCE with the other answers as the baseline. arXiv 2402.14740.

  python -m mmrl.train --config experiments/rloo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/rloo.py:DIR --workdir RUN

`:runlocal` is the quick start with this method; one seed: 82.5 % of the test
questions after, 70.0 % before. It makes 112 steps of 48 questions, one update
each, instead of 28 of 192 with four. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with the paper's 4 answers, KL weight 0.03 inside the
reward and learning rate 1e-6, and one update per rollout batch: the loss has no
ratio. It has not been run.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  if recipes.is_local(arg):
    config = recipes.local()
    config.rollout.prompts //= config.train.minibatches
    config.train.steps *= config.train.minibatches
  else:
    config = recipes.images(arg)
    config.rollout.answers = 4
    config.train.accumulate = 16
  # The loss has no ratio: one update per rollout batch.
  config.train.minibatches = 1
  config.probes.reference = {"name": "reference"}
  config.advantage = {"name": "leave_one_out", "beta": 0.03}
  config.losses = {
    "policy": {
      "name": "policy_gradient",
      "weight": 1.0,
      # The whole answer is one action: its log-probability is the sum.
      "reduce": "sequence_sum",
    }
  }
  return config
