"""Three steps of five methods, on one device or on eight, as numbers.

    python -m tests.goldens        writes testdata/goldens.json anew

What only moves code about changes none of them. `digest` is of every bit of the
parameters: it is for two commits on one machine, as other processors add in
another order.
"""

from concurrent import futures
import hashlib
import importlib
import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import numpy as np

TESTDATA = pathlib.Path(__file__).parent / "testdata"
FILE = TESTDATA / "goldens.json"
EXPERTS = pathlib.Path(tempfile.gettempdir()) / "mmrl_golden_experts.jsonl"
# Name: experiment, argument.
METHODS = {
  "ral": ("quickstart", "ral"),
  "opad": ("opad", "runlocal"),
  "tgrl": ("tgrl", f"{EXPERTS},runlocal"),
  "dapo": ("dapo", "runlocal"),
  "fipo": ("fipo", "runlocal"),
}
# That a mesh changes nothing has tests of its own; one of them suffices here.
CASES = (*((method, 1) for method in METHODS), ("tgrl", 8))
STEPS = 3


def make_config(method: str):
  """A small run of a method, which reads nothing but what ships."""
  name, argument = METHODS[method]
  if str(EXPERTS) in argument:
    from experiments import experts

    command = ["experts", f"--output={EXPERTS}", "--share=1"]
    with mock.patch.object(sys, "argv", command):
      experts.main()
  config = importlib.import_module(f"experiments.{name}").get_config(argument)
  if "teacher" in config.models:
    config.models.teacher.path = "tiny"
  config.rollout.prompts, config.rollout.answers = 16, 4
  config.train.minibatches = 2
  config.shares.prompts = 8
  # A step of Adam is as large where the gradient is nothing but rounding.
  config.optimizer = {"name": "sgd", "momentum": 0.9}
  config.schedule = {"name": "constant_schedule", "value": 0.02}
  return config


def record(method: str, devices: int) -> dict:
  """Metrics of each step, sums over each parameter, and a digest of them."""
  from mmrl.train import collect, loop
  from mmrl.train import run as run_lib

  config = make_config(method)
  run = run_lib.build_run(config, jax.devices()[:devices])
  questions = loop.read_questions(run)
  state, metrics = run.initial_state(), []
  with futures.ThreadPoolExecutor(1) as pool:
    for step in range(1, STEPS + 1):
      batch, values = collect.collect(
        run,
        state,
        next(questions),
        step,
        pool,
        lambda: next(questions),
      )
      state, values = loop.learn(run, state, batch, values, step, 0)
      state = run.at_step(state, step)
      metrics.append(
        {k: v for k, v in values.items() if not k.startswith("time/")}
      )
  questions.close()
  trained = {k: np.asarray(v) for k, v in sorted(state.trainable.items())}
  start = jax.device_get(run.initial_state().trainable)
  digest = hashlib.sha256()
  for leaf in trained.values():
    digest.update(leaf.tobytes())
  return {
    "metrics": metrics,
    "moved": {
      path: float(np.linalg.norm(leaf.astype(np.float64) - start[path]))
      for path, leaf in trained.items()
    },
    "digest": digest.hexdigest(),
  }


def main():
  """Records all of them."""
  found = {
    f"{method}, {devices} devices": record(method, devices)
    for method, devices in CASES
  }
  FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
