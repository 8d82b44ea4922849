"""RAL on Qwen2.5-VL-7B and long videos: the paper's model, on 16 TPU chips.

  python -m mmrl.plan --topology v5p:2x2x4 \\
    --config experiments/ral_qwen2_5_vl_7b.py:DIR
  python -m mmrl.plan --topology v6e:4x4 \\
    --config experiments/ral_qwen2_5_vl_7b.py:DIR

All but the model is as in experiments/ral_qwen2_5_vl_3b.py; see there for
training, data, and what differs from the paper. It has been planned, not run.
"""

from experiments import ral_qwen2_5_vl_3b


def get_config(arg: str = "data"):
  """The recipe, on the 7B model.

  Args:
    arg: DIR.
  """
  config = ral_qwen2_5_vl_3b.get_config(arg)
  config.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
  return config
