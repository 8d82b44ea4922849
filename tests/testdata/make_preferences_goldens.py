"""Writes preferences.npz, what TRL computes for small random pairs of answers.

    python tests/testdata/make_preferences_goldens.py

Needs torch and TRL 1.16 (the extra `peers`). In float64.
"""

import collections
import importlib.metadata
import os
import pathlib
import sys
import types

import numpy as np
import torch

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
HERE = pathlib.Path(__file__).parent
PATH = HERE / "preferences.npz"
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from losses.preferences import (  # noqa: E402
  BETA,
  MARGIN,
  SMOOTHING,
  P,
  R,
  make_inputs,
)


def differentiate(loss, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
  """The loss of [2 P, R] log-probabilities, chosen first, and its gradient."""

  def flat(x):
    return torch.tensor(np.concatenate([x[:, 0], x[:, 1]]))

  logprobs = flat(inputs["logprobs"]).requires_grad_()
  value = loss(logprobs, flat(inputs["logprobs_ref"]), flat(inputs["mask"]))
  value.backward()
  gradient = (logprobs.grad * flat(inputs["mask"])).numpy()
  both = np.stack([gradient[:P], gradient[P:]], axis=1)
  return value.detach().numpy(), both


def dpo(loss_type: str):
  """The trainer's method, of a trainer and a model that have what it reads."""
  from trl.trainer.dpo_trainer import DPOTrainer

  def loss(logprobs, reference, mask):
    # One token of a prompt before each answer.
    ids = torch.zeros(2 * P, R + 1, dtype=torch.long)
    completion = torch.cat([torch.zeros(2 * P, 1), mask], dim=1).long()

    def model(logprobs):
      outputs = types.SimpleNamespace(
        log_probs=logprobs,
        entropy=torch.zeros_like(logprobs),
        mean_logits=torch.zeros_like(logprobs),
        is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
      )

      def call(**_):
        return outputs

      call.training = True
      return call

    policy = model(logprobs)
    same = types.SimpleNamespace(
      device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    trainer = types.SimpleNamespace(
      model=policy,
      accelerator=same,
      args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
      aux_loss_enabled=False,
      beta=BETA,
      f_divergence_type="reverse_kl",
      label_smoothing=SMOOTHING,
      ld_alpha=None,
      loss_types=[loss_type],
      loss_weights=[1.0],
      precompute_ref_logps=True,
      use_weighting=False,
      _metrics={"train": collections.defaultdict(list)},
      _total_train_tokens=0,
      _tp_size=1,
    )
    sums = (reference * mask).sum(1)
    return DPOTrainer._compute_loss(
      trainer,
      policy,
      {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": completion,
        "ref_chosen_logps": sums[:P],
        "ref_rejected_logps": sums[P:],
      },
      False,  # no outputs
    )

  return loss


def cpo(loss_type: str, smoothing: float, *, reference: bool, mean: bool):
  """The method of the trainer without a reference, or of log-ratios."""
  from trl.experimental.cpo import CPOTrainer

  def loss(logprobs, others, mask):
    trainer = types.SimpleNamespace(
      accelerator=types.SimpleNamespace(device="cpu"),
      alpha=0.0,
      beta=BETA,
      label_smoothing=smoothing,
      loss_type=loss_type,
      simpo_gamma=MARGIN,
    )
    values = logprobs - others if reference else logprobs
    total = (values * mask).sum(1)
    if mean:
      total = total / mask.sum(1)
    losses, *_ = CPOTrainer.cpo_loss(trainer, total[:P], total[P:])
    return losses.mean()

  return loss


def trl_results(inputs: dict) -> dict:
  """Per case (loss, gradient)."""
  of_ratios = {"reference": True, "mean": False}
  of_means = {"reference": False, "mean": True}
  cases = {
    **{
      name: dpo(name)
      for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust")
    },
    "smoothed": cpo("sigmoid", SMOOTHING, **of_ratios),
    "simpo": cpo("simpo", 0.0, **of_means),
    "simpo smoothed": cpo("simpo", SMOOTHING, **of_means),
  }
  return {name: differentiate(loss, inputs) for name, loss in cases.items()}


def main():
  inputs = make_inputs(0)
  arrays = {f"input: {name}": x for name, x in inputs.items()}
  for name, result in trl_results(inputs).items():
    arrays[f"loss: {name}"], arrays[f"gradient: {name}"] = result
  arrays["trl"] = importlib.metadata.version("trl")
  np.savez_compressed(PATH, **arrays)
  print(PATH.name, PATH.stat().st_size)


if __name__ == "__main__":
  main()
