"""Builds a run from a config, and checks it before anything starts."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mmrl import build, data, errors
from mmrl.benchmarks import greedy, runner
from mmrl.benchmarks.contract import Benchmark
from mmrl.config import check_fields
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.machines.sharding import Layout
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.probes.policies import Scorer
from mmrl.prompts.processor import Processor
from mmrl.rollouts import expert_filter
from mmrl.rollouts import refill as refill_lib
from mmrl.rollouts.answers import Reward
from mmrl.train import method as method_lib
from mmrl.train import model as model_lib
from mmrl.train import optimizer as optimizer_lib
from mmrl.train import step as step_lib
from mmrl.train import teacher as teacher_lib
from mmrl.train.method import Method
from mmrl.train.step import Programs, State
from mmrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Parts:
  """All parts of a run but weights and data.

  Attributes:
    model_config: the architecture, with the run's compute type.
    scorer: scores answers.
    programs: compiled functions.
    rewards: parts of the reward.
    answer: jitted function that answers greedily, for evaluation.
    optimizer: the optax transformation.
    frozen: expressions that match the paths of frozen parameters.
    frozen_vision: whether visual tokens remain valid after an update.
    group: number of prompts whose pictures are packed together.
    layout: sharding of the run's arrays.
    teacher_layout: sharding of the teacher's.
  """

  model_config: ModelConfig
  scorer: Scorer
  programs: Programs
  rewards: Sequence[Reward]
  answer: Any
  optimizer: Any
  frozen: tuple[str, ...]
  frozen_vision: bool
  group: int
  layout: Layout
  teacher_layout: Layout

  def first_state(self, params: PyTree) -> State:
    """Makes the state of step 0 from parameters or from their traced shapes."""
    trainable, frozen = parameters.partition(params, self.frozen)
    return State(
      step=jnp.zeros((), jnp.int32),
      trainable=trainable,
      frozen=frozen,
      optimizer=self.optimizer.init(trainable),
    )


@dataclasses.dataclass(frozen=True)
class Run(Parts):
  """A run that is built: its parts, weights and data.

  Attributes:
    processor: tokenizer and pictures.
    params: initial parameters, which are also the reference.
    params_teacher: parameters of the teacher; None without one.
    train_source: questions to train on.
    benchmarks: questions to evaluate on, by name.
    experts: expert trajectories; None without them.
  """

  processor: Processor
  params: PyTree
  params_teacher: PyTree | None
  train_source: Any
  benchmarks: Mapping[str, Benchmark]
  experts: data.Experts | None

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


def _check_sizes(
  config: ml_collections.ConfigDict, model: ModelConfig, layout: Layout
):
  prompts, parts = config.rollout.prompts, config.train.minibatches
  shards = layout.shards
  # Every part of every minibatch has equally many prompts on each shard.
  if prompts % (parts * config.train.accumulate * shards):
    on = f" x {shards} shards of the mesh" if shards > 1 else ""
    raise UserError(
      f"config.rollout.prompts: expected a multiple of train.minibatches x"
      f" train.accumulate{on} = {parts} x {config.train.accumulate}"
      f"{f' x {shards}' if on else ''}, found {prompts}"
    )
  _check_heads("config.mesh", model, layout)
  for field, least in (("answers", 1), ("length", 1), ("refill.rounds", 0)):
    found = operator.attrgetter(field)(config.rollout)
    if found < least:
      raise UserError(
        f"config.rollout.{field}: expected at least {least}, found {found}"
      )
  if config.rollout.temperature < 0 or not 0 < config.rollout.top_p <= 1:
    raise UserError(
      "config.rollout: expected temperature >= 0 and top_p in (0, 1], found"
      f" {config.rollout.temperature} and {config.rollout.top_p}"
    )
  if config.attention.row not in ("self", "emit"):
    raise UserError(
      "config.attention.row: expected 'self' or 'emit', found"
      f" {config.attention.row!r}"
    )
  _check_layers(config, model)
  refill = config.rollout.refill
  sizes = config.data.lengths, config.data.patches
  # A group can only replace one of the same padded shape.
  if refill.rounds and any(len(x) != 1 for x in sizes):
    raise UserError(
      "config.data: expected one size of prompts and of patches where groups"
      " are drawn again (rollout.refill), found lengths"
      f" {tuple(sizes[0])} and patches {tuple(sizes[1])}"
    )


def _check_refill(config: ml_collections.ConfigDict, rewards: Sequence[Reward]):
  """Checks that resampling uses a text reward: no probe has run before it."""
  refill = config.rollout.refill
  known = [reward.name for reward in rewards if reward.on_host]
  if refill.rounds and refill.reward not in known:
    raise UserError(
      "config.rollout.refill.reward: expected one of config.rewards that reads"
      f" texts, {', '.join(known)}, found {refill.reward!r}"
    )


def _check_heads(where: str, model: ModelConfig, layout: Layout):
  tensor = layout.mesh.shape["tensor"]
  for name in ("num_attention_heads", "num_key_value_heads"):
    heads = getattr(model.text, name)
    if heads % tensor:
      raise UserError(
        f"{where}.tensor: expected a divisor of the model's {name}, {heads},"
        f" found {tensor}"
      )


def _check_layers(
  config: ml_collections.ConfigDict, model: ModelConfig, whose: str = "a"
):
  depth = model.text.num_hidden_layers
  layers = config.attention.layers
  if not layers or any(not -depth <= layer < depth for layer in layers):
    raise UserError(
      f"config.attention.layers: expected layers of {whose} {depth}-layer"
      f" decoder, found {tuple(layers)}"
    )


def _check_teacher(
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  teacher: ModelConfig,
  layout: Layout,
):
  teacher_lib.check(model, teacher)
  _check_layers(config, teacher, "the teacher's")
  _check_heads("config.teacher.mesh", teacher, layout)
  if config.rollout.prompts % layout.shards:
    raise UserError(
      "config.teacher.mesh: expected data x fsdp to divide rollout.prompts,"
      f" {config.rollout.prompts}, found {layout.shards}"
    )


def build_run(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Run:
  """Builds a run from a config: loads weights and data, checks everything.

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
  model = model_lib.load(config, layout.parameter)
  teacher = None
  if config.teacher.path:
    teacher_layout = layout_of_teacher(config, layout)
    teacher = teacher_lib.load(config, model, teacher_layout)
  parts = build_parts(
    config, model.config, layout, teacher.config if teacher else None
  )
  train_source = build.construct(
    data, config.data.train.to_dict(), "config.data.train"
  )
  return Run(
    **vars(parts),
    processor=model.processor,
    params=model.params,
    params_teacher=teacher.params if teacher else None,
    train_source=train_source,
    benchmarks=runner.build_benchmarks(config.evaluation.to_dict()),
    experts=_read_experts(config, train_source, model.processor),
  )


def _read_experts(
  config: ml_collections.ConfigDict, source: Any, processor: Processor
) -> data.Experts | None:
  settings = config.experts
  if not settings.path:
    return None
  for field, others in (("accuracy", ()), ("format", ("",))):
    if settings[field] not in (*config.rewards, *others):
      raise UserError(
        f"config.experts.{field}: expected one of config.rewards,"
        f" {', '.join(config.rewards)}, found {settings[field]!r}"
      )
  with errors.of_field("config.experts"):
    expert_filter.check_options(settings.solved, settings.quantile)
  return data.Experts(
    settings.path,
    known=source.names(),
    processor=processor,
    length=config.rollout.length,
    count=settings.count,
  )


def layout_of_teacher(
  config: ml_collections.ConfigDict, layout: Layout
) -> Layout:
  """Makes the teacher's layout on the run's devices; without one, the run's."""
  if not config.teacher.path:
    return layout
  devices = list(layout.mesh.devices.flat)
  sizes = config.teacher.mesh.to_dict()
  return Layout(sharding.make_mesh(sizes, devices, "config.teacher.mesh"))


def build_parts(
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  layout: Layout,
  teacher: ModelConfig | None = None,
) -> Parts:
  """Builds the parts of a run that need neither weights nor data.

  Args:
    config: see `mmrl.config`.
    model: the architecture, with the run's compute type.
    layout: sharding of the run's arrays.
    teacher: the teacher's architecture; None without one.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  _check_sizes(config, model, layout)
  runner.check_settings(config.evaluation.to_dict())
  teacher_layout = layout_of_teacher(config, layout)
  if teacher:
    _check_teacher(config, model, teacher, teacher_layout)
  method = method_lib.bind(config)
  settings = (
    config.rollout.temperature or 1.0,
    tuple(config.attention.layers),
    config.attention.row,
  )
  scorer = Scorer(model, *settings)
  optimizer = optimizer_lib.make(
    config.optimizer.to_dict(), config.schedule.to_dict(), config.clip_norm
  )
  _check_refill(config, method.rewards)
  teach = step_lib.make_teach(
    Scorer(teacher or model, *settings),
    method.teacher_probes,
    method.named,
    teacher_layout,
  )
  frozen = tuple(config.frozen)
  # Updates reuse the rollout's visual tokens if the vision tower is frozen.
  trainable, _ = parameters.partition(parameters.shapes(model), frozen)
  return Parts(
    model_config=model,
    scorer=scorer,
    programs=_programs(config, scorer, method, optimizer, teach, layout),
    rewards=method.rewards,
    answer=greedy.make_answer(scorer, config.rollout.length, layout),
    optimizer=optimizer,
    frozen=frozen,
    frozen_vision=not any(path.startswith("vision/") for path in trainable),
    group=_group(config, layout, teacher_layout),
    layout=layout,
    teacher_layout=teacher_layout,
  )


def _programs(
  config: ml_collections.ConfigDict,
  scorer: Scorer,
  method: Method,
  optimizer: optax.GradientTransformation,
  teach: Callable,
  layout: Layout,
) -> Programs:
  """Builds the jitted programs of a run; each compiles at its first call."""
  terms, weights = method.terms, method.token_weights
  options = {
    name: config.rollout[name]
    for name in ("answers", "length", "temperature", "top_k", "top_p")
  }
  return Programs(
    rollout=step_lib.make_rollout(scorer, options, layout),
    probe=step_lib.make_probe(scorer, method.probes, layout),
    teach=teach,
    reward=step_lib.make_reward(
      method.rewards, scorer.config.eos_token_id, layout
    ),
    exchange=refill_lib.make_exchange(layout),
    prepare=step_lib.make_prepare(method.advantage, weights, layout),
    update=step_lib.make_update(
      step_lib.make_loss(scorer, terms, weights),
      terms,
      optimizer,
      layout,
      accumulate=config.train.accumulate,
    ),
    shares=step_lib.make_shares(
      scorer, terms, weights, layout, prompts=config.shares.prompts
    ),
  )


def _group(
  config: ml_collections.ConfigDict, layout: Layout, teacher_layout: Layout
) -> int:
  """Computes the largest possible number of prompts per pack of pictures.

  Every cut through a batch (shards, minibatches, their parts, the prompts that
  shares of the gradient are measured on) must fall between packs.
  """
  parts = config.train.minibatches * config.train.accumulate * layout.shards
  prompts = config.rollout.prompts
  cuts = [prompts // parts, prompts // teacher_layout.shards]
  if config.rollout.refill.rounds:
    cuts.append(1)  # groups are exchanged one by one
  if config.shares.every:
    cuts.append(config.shares.prompts)
  return math.gcd(*cuts)
