"""OPAD: the student looks where the teacher looks. arXiv 2602.04884.

  python -m experiments.tiny_model --teacher --output runs/tiny_teacher
  python -m mmrl.train --config experiments/opad.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/opad.py:runlocal,kd --workdir RUN
  python -m mmrl.plan --config experiments/opad.py:DIR --topology v5p:4x4x4

The student samples; the teacher reads its answers. To GRPO come the reverse KL
to the teacher's tokens over the whole vocabulary (mu = 1) and the divergence of
the student's attention from the teacher's (gamma = 1). `,kd` leaves the latter
out and changes nothing else.

`:runlocal` is the quick start with both terms and a larger teacher that the
first command trains. Five minutes on two CPU cores. Result to expect: 70 % of
the test questions before, about 86 % after, with either arm; the teacher has
86.6 %. `:DIR` is a 7B student and a 32B teacher on 64 chips, with RAL's recipe
(experiments/ral_qwen2_5_vl_7b.py). It has been planned, not run.

Plan (libtpu 0.0.52): fits v5p:4x4x4, 95 GiB a chip. The time is that of the
model's FLOPs at the chips' peak.

               evaluate  rollout   probe teacher  prepare  update
  GiB a chip       9.61     9.00    7.56    9.25     7.36   13.51
  TFLOP                    19289   26318   71293            11601
  seconds                   0.66    0.90    2.43             0.39

Differs from the paper: mu, which it doesn't give, is 1; gamma, of which it says
that 0.05, 0.5 and 1 were tried, is 1; and the attention term is a mean over
tokens, not a sum.
"""

from collections.abc import Mapping

import ml_collections

from experiments import ral_qwen2_5_vl_7b, recipes
from mmrl.errors import UserError


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR; either with ",kd" for on-policy distillation of
      the tokens alone.
  """
  base, _, arm = arg.partition(",")
  if arm not in ("", "kd"):
    raise UserError(f"opad.py:{arg}: expected one argument, or one and ,kd")
  mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  if recipes.is_local(base):
    config = recipes.local()
    config.models.teacher = {
      "name": "Directory",
      "path": "runs/tiny_teacher",
      "mesh": mesh,
    }
  else:
    config = ral_qwen2_5_vl_7b.get_config(base)
    del config.losses["attention"]
    config.models.teacher = {
      "name": "Directory",
      "path": "Qwen/Qwen2.5-VL-32B-Instruct",
      "dtype": "bfloat16",
      "param_dtype": "bfloat16",
      "mesh": mesh,
    }
    # 16 prompts to an update, one on each four chips; the teacher reads one
    # prompt on each chip.
    config.mesh.tensor = 4
  add_distillation(config, 1.0, attention=not arm)
  return config


def add_distillation(
  config: ml_collections.ConfigDict,
  weight: float | Mapping[str, float],
  *,
  attention: bool,
) -> None:
  """Adds the terms of distillation from the model `teacher` to a config.

  Args:
    config: to change.
    weight: of each term; a number, or a share of the gradient.
    attention: whether the teacher's attention is distilled, too.
  """
  config.losses.distillation = {
    "name": "distillation_kl",
    "weight": weight,
    "reduce": "sequence_mean",
    "beta": 1.0,
    "temperature": 1.0,
  }
  if attention:
    config.losses.attention_distillation = {
      "name": "attention_distillation",
      "weight": weight,
      "reduce": "sequence_mean",
    }
