"""RAL over chosen blocks: punctuation-aware sparse attention. arXiv 2601.02819.

  python -m mmrl.train --config experiments/phsa.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/phsa.py:DIR --workdir RUN
  python -m mmrl.plan --config experiments/phsa.py:DIR --topology v5e:4x4

`:runlocal` is the quick start with blocks of 4 keys, two of which are chosen;
its prompts have at most 40 tokens, so that it shows that everything fits
together, not what is saved. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with the paper's settings for 4,096 tokens: block 16,
init 16, local 128, K = 2, mix 0.5. Neither has been run: no number is known.
What the attention itself does is measured in docs/methods.md.

The paper trains language models from text with this attention; here a model
that was trained with dense attention goes on with it, by RL.
"""

from experiments import recipes
from mmrl import config as config_lib


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = config_lib.add_ral(recipes.base(arg))
  small = recipes.is_local(arg)
  config.models.policy.attention = {
    "name": "punctuation_sparse",
    "block": 4 if small else 16,
    "init": 4 if small else 16,
    "local": 8 if small else 128,
    "top_k": 2,
    "mix": 0.5,
  }
  return config
