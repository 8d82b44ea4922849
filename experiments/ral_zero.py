"""RAL-zero: RAL without a rationale. arXiv 2602.04884.

  python -m mmrl.train --config experiments/ral_zero.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/ral_zero.py:DIR --workdir RUN

The answer is the whole output, and the format reward is for exactly that. All
else is RAL's (experiments/quickstart.py, experiments/ral_qwen2_5_vl_7b.py).

`:runlocal` begins with the tiny model that was taught to answer directly, made
by `python -m experiments.tiny_model --direct --output runs/tiny_direct`, up to
where it answers about as well as RAL's does. Four minutes on two CPU cores.
Beside RAL, mean of three seeds (README, Results), 2,000 test questions:

                               RAL-zero      RAL
  accuracy before                68.2 %   70.0 %
  accuracy after                 70.8 %   83.1 %
  attention on the object before 11.6 %   17.4 %
  attention on the object after  13.1 %   18.9 %

The question alone allows 66.0 %, and uniform attention has 12.2 % on the
object: the model that RAL-zero begins with hardly looks. RAL's was taught to
name colour and shape in its thought, so the table compares two beginnings as
much as two methods. `:DIR` has not been run.
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
    config.models.policy.path = "runs/tiny_direct"
  else:
    config = ral_qwen2_5_vl_7b.get_config(arg)
    config.data.train.prompt = _DIRECT
    config.evaluation.benchmarks.test.data.prompt = _DIRECT
  config.rewards.format.form = "answer"
  config.evaluation.benchmarks.test.scores.format.form = "answer"
  return config
