"""DAPO: clip higher, dynamic sampling, token mean, overlong shaping.

  python -m mmrl.train --config experiments/dapo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/dapo.py:DIR --workdir RUN

arXiv 2503.14476. `:runlocal` is the quick start with this method, one round of
dynamic sampling; one seed: 85.6 % of the test questions after, 70.0 % before.
`:DIR` is Qwen2.5-VL-7B on your questions (experiments/jsonl.py) with the sizes
of its reproductions, see `recipes.dapo`. It has not been run. The paper trains
a 32B text model on mathematics.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  return recipes.dapo_local() if recipes.is_local(arg) else recipes.dapo(arg)
