"""RAL-zero: RAL without a rationale. arXiv 2602.04884.

  python -m mmrl.train --config experiments/ral_zero.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/ral_zero.py:DIR --workdir RUN

The answer is the whole output, and the format reward is for exactly that. All
else is RAL's (experiments/quickstart.py, experiments/ral_qwen2_5_vl_7b.py).

`:runlocal` begins with the tiny model that was taught to answer directly, made
by `python -m experiments.tiny_model --direct --output runs/tiny_direct`. Four
minutes on two CPU cores. Beside RAL, one seed, 2,000 test questions:

                               RAL-zero      RAL
  accuracy before                67.0 %   70.0 %
  accuracy after                 67.7 %   84.4 %
  attention on the object before 11.4 %   17.4 %
  attention on the object after  11.8 %   18.4 %

  python -m experiments.compare --output runs/compare --seeds 0 \\
    --arms ral_zero:runlocal quickstart:ral

The model that it begins with answers no better than the question alone allows
(67.0 %) and looks at the object less than uniform attention would (12.2 %):
reward finds nothing there to reinforce in 28 steps. So this table compares two
beginnings more than two methods. `:DIR` has not been run.
"""

from experiments import quickstart, ral_qwen2_5_vl_7b, recipes

_DIRECT = """{question}
Write only the final answer between <answer> and </answer>."""


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  if recipes.is_local(arg):
    config = quickstart.get_config("ral")
    config.model.path = "runs/tiny_direct"
  else:
    config = ral_qwen2_5_vl_7b.get_config(arg)
    for split in ("train", "test"):
      config.data[split].prompt = _DIRECT
  config.rewards.format.form = "answer"
  config.evaluation.form = "answer"
  return config
