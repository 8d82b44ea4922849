"""RAL on Qwen2.5-VL-7B and long videos: the paper's model, on 16 TPU chips.

  python -m mmrl.plan --topology v5p:2x2x4 \\
    --config experiments/ral_qwen2_5_vl_7b.py:DIR
  python -m mmrl.plan --topology v6e:4x4 \\
    --config experiments/ral_qwen2_5_vl_7b.py:DIR

All but the model is as in experiments/ral_qwen2_5_vl_3b.py; see there for
training, data, and what differs from the paper. It has been planned, not run.

Plans (libtpu 0.0.52): fits v5p:2x2x4, 95 GiB a chip, and v6e:4x4, 32 GiB a
chip; also 64 chips, v5p:4x4x4, with --config.mesh.tensor=4, as there are fewer
questions to an update than chips. The times are those of the model's FLOPs at
the chips' peak.

               evaluate  rollout   probe  prepare  update (4 of them a step)
  TFLOP                    19289   26318             11448
  v5p:2x2x4
  GiB a chip      24.38    26.45   17.04     7.87   18.42
  seconds                   2.63    3.58              1.56
  v6e:4x4
  GiB a chip      24.31    26.56   15.73     7.87   18.43
  seconds                   1.31    1.79              0.78
"""

from experiments import ral_qwen2_5_vl_3b


def get_config(arg: str = "data"):
  """The recipe, on the 7B model.

  Args:
    arg: DIR.
  """
  config = ral_qwen2_5_vl_3b.get_config(arg)
  config.models.policy.path = "Qwen/Qwen2.5-VL-7B-Instruct"
  return config
