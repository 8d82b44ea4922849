"""Writes trl_gkd.json, what TRL's GKDTrainer computes for small logits.

    python tests/testdata/make_trl_goldens.py

Needs torch and TRL 1.16 (the extra `peers`). All in float64, of logits
rounded to three digits.
"""

import json
import os
import pathlib

import numpy as np
import torch

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import trl
from trl.experimental.gkd import GKDTrainer

PATH = pathlib.Path(__file__).parent / "trl_gkd.json"
SHAPE = 2, 3, 7
MASK = [[True, True, True], [True, False, False]]


def case(student, teacher, beta: float, temperature: float) -> dict:
  """Of each token, and of the mean over tokens with its gradient."""
  options = {"beta": beta, "temperature": temperature}
  terms = GKDTrainer.generalized_jsd_loss(
    student, teacher, reduction="none", **options
  )
  student = student.clone().requires_grad_()
  labels = torch.where(torch.tensor(MASK), 0, -100)
  loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, **options)
  loss.backward()
  return options | {
    "values": terms.sum(-1).numpy().round(9).tolist(),
    "loss": round(loss.item(), 9),
    "gradient": student.grad.numpy().round(9).tolist(),
  }


def main():
  rng = np.random.default_rng(0)
  student, teacher = (rng.normal(0, 2, SHAPE).round(3) for _ in range(2))
  golden = {
    "trl": trl.__version__,
    "student": student.tolist(),
    "teacher": teacher.tolist(),
    "mask": MASK,
    "cases": [
      case(torch.tensor(student), torch.tensor(teacher), beta, temperature)
      for beta in (0.0, 0.1, 0.5, 0.75, 1.0)
      for temperature in (1.0, 2.0)
    ],
  }
  PATH.write_text(json.dumps(golden) + "\n")
  print(PATH.name, PATH.stat().st_size)


if __name__ == "__main__":
  main()
