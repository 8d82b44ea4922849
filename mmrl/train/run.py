"""A run: its parts, weights and data."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmrl import data
from mmrl.benchmarks import runner
from mmrl.benchmarks.contract import Benchmark
from mmrl.config import check_fields
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.machines import sharding
from mmrl.machines.sharding import Layout
from mmrl.prompts.processor import Processor
from mmrl.rollouts import answers
from mmrl.train import models as models_lib
from mmrl.train import walk
from mmrl.train.parts import Parts, build_parts
from mmrl.train.state import State
from mmrl.types import PyTree
from mmrl.workdir import trackers


@dataclasses.dataclass(frozen=True)
class Run(Parts):
  """A run that is built: its parts, weights and data.

  Attributes:
    processor: tokenizer and pictures.
    params: initial parameters of the policy; None once a state is made of
      them, so that they take no memory.
    fixed: parameters of the models that don't change, by name.
    train_source: questions to train on.
    benchmarks: questions to evaluate on, by name.
  """

  processor: Processor
  params: PyTree | None
  fixed: Mapping[str, PyTree]
  train_source: Any
  benchmarks: Mapping[str, Benchmark]

  def initial_state(self) -> State:
    """Makes the state of step 0 from copies, as updates donate their state."""

    def make(params: PyTree) -> State:
      return self.first_state(jax.tree.map(jnp.copy, params))

    shapes = jax.eval_shape(make, self.params)
    return jax.jit(make, out_shardings=self.layout.of(shapes))(self.params)

  def at_step(self, state: State, step: int) -> State:
    """Returns the state with its step set to `step`.

    The number keeps its sharding; otherwise programs would be recompiled.
    """
    number = self.layout.number(np.int32(step))
    return dataclasses.replace(state, step=number)


def build_run(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Run:
  """Builds a run from a config: checks everything, loads weights and data.

  Args:
    config: see `mmrl.config`.
    devices: devices to run on; all by default.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  check_fields(config)
  layout = Layout(
    sharding.make_mesh(config.mesh.to_dict(), devices), config.train.minibatches
  )
  for name in ("lengths", "patches"):
    if jax.process_count() > 1 and len(config.data[name]) != 1:
      raise UserError(
        f"config.data.{name}: expected one size with several processes, which"
        f" would choose different ones, found {tuple(config.data[name])}"
      )
  architecture = config_json.read(directory.find(config.models.policy.path))
  parts = build_parts(
    config,
    models_lib.compute_as(config, architecture),
    layout,
    models_lib.read_architectures(config),
  )
  train_source = data.sources.make(
    config.data.train.to_dict(), "config.data.train"
  )
  answers.require_answers(
    [reward.bound for reward in parts.method.rewards], train_source
  )
  trackers.resolve(config.trackers.to_dict())
  benchmarks = runner.build_benchmarks(config.evaluation.to_dict())
  walk.check(parts)
  policy = models_lib.load_policy(config, layout.parameter)
  parts.source.open(train_source, policy.processor)
  return Run(
    **vars(parts),
    processor=policy.processor,
    params=policy.params,
    fixed=models_lib.load_fixed(parts.method.models, policy),
    train_source=train_source,
    benchmarks=benchmarks,
  )
