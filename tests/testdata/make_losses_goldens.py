"""Writes losses.npz, what TRL and verl compute for small random answers.

    pip install --no-deps verl==0.9.1
    python tests/testdata/make_losses_goldens.py

Needs torch and TRL 1.16 (the extra `peers`), and of verl the files alone: the
package would want Ray and more. In float64.
"""

import collections
import importlib.metadata
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
PATH = HERE / "losses.npz"
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from losses.libraries import (  # noqa: E402
  BETA,
  CLIPS,
  GAMMA,
  HORIZON,
  REDUCTIONS,
  SEQUENCE,
  G,
  P,
  R,
  make_inputs,
)


def tensors(inputs: dict) -> types.SimpleNamespace:
  """[N, R] and [N], as both libraries have them."""
  flat = {
    name: torch.tensor(x.reshape(P * G, *x.shape[2:]), dtype=torch.float64)
    for name, x in inputs.items()
  }
  return types.SimpleNamespace(**flat)


def differentiate(loss, x) -> tuple[np.ndarray, np.ndarray]:
  """The loss as a function of logprobs, and its gradient."""
  logprobs = x.logprobs.clone().requires_grad_()
  value = loss(logprobs)
  value.backward()
  gradient = logprobs.grad * x.mask
  return value.detach().numpy(), gradient.reshape(P, G, R).numpy()


# TRL: the trainer's method, of a trainer that has what the method reads.


def trl_results(inputs: dict) -> dict:
  """Per case of TRL (loss, gradient)."""
  from trl.trainer.grpo_trainer import GRPOTrainer
  from trl.trainer.rloo_trainer import RLOOTrainer

  x = tensors(inputs)

  def trainer(logprobs, clips, loss_type, beta, level, delta, vllm):
    zeros = torch.zeros_like(logprobs)
    return types.SimpleNamespace(
      _get_per_token_logps_and_entropies=lambda *_, **__: (
        *(logprobs, zeros, None),
      ),
      _metrics={"train": collections.defaultdict(list)},
      _entropy_bonus_enabled=False,
      accelerator=types.SimpleNamespace(
        num_processes=1,
        gather=lambda values: values,
        reduce=lambda values, reduction: values,
      ),
      args=types.SimpleNamespace(
        delta=delta, use_bias_correction_kl=False, steps_per_generation=1
      ),
      aux_loss_enabled=False,
      beta=beta,
      current_gradient_accumulation_steps=1,
      epsilon_high=clips["clip_high"],
      epsilon_low=clips["clip_low"],
      importance_sampling_level=level,
      loss_type=loss_type,
      max_completion_length=HORIZON,
      model=types.SimpleNamespace(training=True),
      off_policy_mask_threshold=None,
      top_entropy_quantile=1.0,
      use_vllm=vllm,
      vllm_importance_sampling_correction=vllm,
    )

  batch = {
    "prompt_ids": torch.zeros(P * G, 1),
    "prompt_mask": torch.ones(P * G, 1),
    "completion_ids": torch.zeros(P * G, R),
    "completion_mask": x.mask,
    "advantages": x.advantages,
    "old_per_token_logps": x.logprobs_old,
    "old_logps": (x.logprobs_old * x.mask).sum(1),
    "ref_per_token_logps": x.logprobs_ref,
    "num_items_in_batch": x.mask.sum(),
    # What its vLLM path makes of the sampler's probabilities.
    "importance_sampling_ratio": torch.exp(
      x.logprobs_old - x.logprobs_sampler
    ).clamp(max=2.0),
  }

  def run(
    loss_type,
    *,
    method=GRPOTrainer._compute_loss,
    clips=CLIPS,
    beta=0.0,
    level="token",
    delta=None,
    vllm=False,
    batch=batch,
  ):
    def loss(logprobs):
      this = trainer(logprobs, clips, loss_type, beta, level, delta, vllm)
      return method(this, None, batch)

    return differentiate(loss, x)

  # RLOO's value counts -A of an answer without a token, where the ratio is 1.
  not_empty = batch | {"advantages": x.advantages * (x.mask.sum(1) > 0)}
  of_sequences = {"clips": SEQUENCE, "level": "sequence"}
  return {
    "trl grpo": run("grpo", beta=BETA),
    "trl grpo delta": run("grpo", beta=BETA, delta=2.0),
    "trl grpo sequence": run("grpo", beta=BETA, **of_sequences),
    "trl bnpo": run("bnpo"),
    "trl dr_grpo": run("dr_grpo"),
    "trl dapo": run("dapo"),
    "trl dapo mismatch": run("dapo", beta=BETA, vllm=True),
    "trl luspo": run("luspo", **of_sequences),
    # Its epsilon_high is the bound of the weight.
    "trl cispo": run("cispo", clips=CLIPS | {"clip_high": 1.28}),
    "trl rloo": run(
      "", method=RLOOTrainer._compute_loss, clips=SEQUENCE, batch=not_empty
    ),
  }


# verl: three of its files, and names for what they import besides.


class Stub(types.ModuleType):
  """A module that has every class."""

  __path__ = ()

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    setattr(self, name, type(name, (), {}))
    return getattr(self, name)


class Config(types.SimpleNamespace):
  """What the losses read of verl's configs."""

  def get(self, name, default=None):
    return getattr(self, name, default)


def load_verl() -> tuple[types.ModuleType, types.ModuleType]:
  """`core_algos` and `rollout_corr_helper`.

  Raises:
    ImportError: if verl isn't installed.
  """
  spec = importlib.util.find_spec("verl")
  if spec is None:
    raise ImportError("verl")
  [root] = map(pathlib.Path, spec.submodule_search_locations)
  stubs = {
    name: Stub(name)
    for name in (
      *("omegaconf", "tensordict", "verl", "verl.protocol", "verl.trainer"),
      *("verl.trainer.config", "verl.trainer.config.algorithm"),
      *("verl.utils", "verl.utils.device", "verl.utils.import_utils"),
      *("verl.workers", "verl.workers.config", "verl.workers.config.actor"),
    )
  }
  for name, stub in stubs.items():
    package, _, child = name.rpartition(".")
    if package:
      setattr(stubs[package], child, stub)
  stubs["verl.workers.config"].ActorConfig = Config
  stubs["verl.utils.import_utils"].deprecated = lambda _: (
    lambda function: function
  )

  def load(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
      path.replace("/", "."), root.parent / f"{path}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  with mock.patch.dict(sys.modules, stubs):
    functional = load("verl/utils/torch_functional")
    stubs["verl.utils"].torch_functional = functional
    sys.modules["verl.utils.torch_functional"] = functional
    return load("verl/trainer/ppo/core_algos"), load(
      "verl/trainer/ppo/rollout_corr_helper"
    )


def verl_results(inputs: dict) -> dict:
  """Per case of verl (loss, gradient), or values."""
  algos, correction = load_verl()
  x = tensors(inputs)
  advantages = x.advantages[:, None].expand(P * G, R)
  log_mismatch = x.logprobs_old - x.logprobs_sampler

  def run(name, mode, *, clips=CLIPS, weights=None):
    scale = {"loss_scale_factor": HORIZON}
    config = Config(
      clip_ratio=0.2,
      clip_ratio_low=clips["clip_low"],
      clip_ratio_high=clips["clip_high"],
      clip_ratio_c=3.0,
      global_batch_info=scale if mode.endswith("-norm") else {},
    )

    def loss(logprobs):
      value, _ = algos.get_policy_loss_fn(name)(
        *(x.logprobs_old, logprobs, advantages, x.mask, mode, config, weights)
      )
      return value

    return differentiate(loss, x)

  def kl(kind):
    def loss(logprobs):
      values = algos.kl_penalty(logprobs, x.logprobs_ref, kind)
      return algos.agg_loss(values, x.mask, "token-mean")

    return differentiate(loss, x)

  def mismatch(level, threshold):
    weights, _ = correction.compute_rollout_correction_weights(
      log_mismatch, x.mask, level, threshold
    )
    return weights

  def token_rewards(beta):
    """At the last token; that of an empty answer stays outside the mask."""
    last = (x.mask.sum(1) - 1).clamp(min=0).long()
    rewards = torch.nn.functional.one_hot(last, R) * x.rewards[:, None]
    return rewards - beta * (x.logprobs_old - x.logprobs_ref) * x.mask

  def advantage(name, beta=0.0, **options):
    # Of groups; REINFORCE++ takes none.
    index = np.repeat(np.arange(P), G)
    values, _ = algos.get_adv_estimator_fn(name)(
      token_level_rewards=token_rewards(beta),
      response_mask=x.mask,
      index=index,
      **options,
    )
    return values

  values = {
    "verl grpo": advantage("grpo", epsilon=1e-6),
    "verl grpo none": advantage("grpo", norm_adv_by_std_in_grpo=False),
    "verl rloo": advantage("rloo", beta=BETA),
    "verl reinforce_plus_plus": advantage(
      "reinforce_plus_plus", beta=BETA, config=Config(gamma=GAMMA)
    ),
    "verl reinforce_plus_plus_baseline": advantage(
      "reinforce_plus_plus_baseline"
    ),
    "verl mismatch token": mismatch("token", 2.0),
    "verl mismatch sequence": mismatch("sequence", 1.5),
    "verl mismatch token 0.8_1.2": mismatch("token", "0.8_1.2"),
    "verl mismatch sequence 0.5_2": mismatch("sequence", "0.5_2"),
  }
  return {
    **{f"verl vanilla {mode}": run("vanilla", mode) for mode in REDUCTIONS},
    "verl vanilla mismatch": run(
      "vanilla", "token-mean", weights=mismatch("token", 2.0)
    ),
    "verl gspo": run("gspo", "seq-mean-token-mean", clips=SEQUENCE),
    "verl gspo token-mean": run("gspo", "token-mean", clips=SEQUENCE),
    "verl cispo": run("cispo", "token-mean"),
    **{f"verl kl {k}": kl(k) for k in ("k1", "k2", "k3", "k1+", "k3+")},
    **{k: (v * x.mask).reshape(P, G, R).numpy() for k, v in values.items()},
  }


def main():
  inputs = make_inputs(0)
  arrays = {f"input: {name}": x for name, x in inputs.items()}
  for name, result in (trl_results(inputs) | verl_results(inputs)).items():
    if isinstance(result, tuple):
      arrays[f"loss: {name}"], arrays[f"gradient: {name}"] = result
    else:
      arrays[f"values: {name}"] = result
  for library in ("trl", "verl"):
    arrays[library] = importlib.metadata.version(library)
  np.savez_compressed(PATH, **arrays)
  print(PATH.name, PATH.stat().st_size)


if __name__ == "__main__":
  main()
