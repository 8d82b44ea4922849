"""Parts of a run that need neither weights nor data, built from its config."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mmrl import build, rollouts
from mmrl.benchmarks import greedy, runner
from mmrl.config import ROLLOUT_SIZES
from mmrl.errors import UserError
from mmrl.losses import weight
from mmrl.machines import batches
from mmrl.machines.sharding import Layout, check_heads
from mmrl.models import parameters
from mmrl.models.config import ModelConfig
from mmrl.probes.scores import Scorer
from mmrl.rollouts.source import Setup, Source
from mmrl.strategies import asking
from mmrl.train import method as method_lib
from mmrl.train import models as models_lib
from mmrl.train import objective
from mmrl.train import state as state_lib
from mmrl.train import step as step_lib
from mmrl.train.method import Method
from mmrl.train.models import Average
from mmrl.train.state import Beginning, State
from mmrl.train.step import Programs
from mmrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class Parts:
  """All parts of a run but weights and data.

  Attributes:
    config: of the run.
    model_config: the policy's architecture, with the run's compute type.
    scorer: scores answers.
    source: where answers come from.
    method: functions of the slots.
    asked: what asks models for texts, by the names that rewards use.
    programs: compiled functions.
    answer: programs that answer greedily, for evaluation.
    optimizer: the optax transformation.
    frozen: expressions that match the paths of frozen parameters.
    frozen_vision: whether visual tokens remain valid after an update.
    pack: number of prompts whose pictures are packed together.
    layout: sharding of the run's arrays.
  """

  config: ml_collections.ConfigDict
  model_config: ModelConfig
  scorer: Scorer
  source: Source
  method: Method
  asked: Mapping[str, asking.Asker]
  programs: Programs
  answer: greedy.Answerer
  optimizer: Any
  frozen: tuple[str, ...]
  frozen_vision: bool
  pack: int
  layout: Layout

  def first_state(self, params: PyTree) -> State:
    """Makes the state of step 0 from parameters or from their traced shapes."""
    trainable, frozen = parameters.partition(params, self.frozen)
    learned, running = self._first_terms()
    trainable |= learned
    return State(
      step=jnp.zeros((), jnp.int32),
      trainable=trainable,
      frozen=frozen,
      optimizer=self.optimizer.init(trainable),
      running=running,
      averages={
        name: state_lib.start_average(trainable)
        for name in averages(self.method)
      },
      norms=weight.start(objective.weights_of(self.method.terms)),
    )

  def beginning(self, params: PyTree) -> Beginning:
    """Returns what to keep of the policy at step 0, for models that are it.

    Args:
      params: of the policy, or their shapes.
    """
    # A new adapter changes nothing yet: the policy at step 0 is its base.
    if models_lib.has_new_adapter(self.config):
      return Beginning({})
    return Beginning(parameters.partition(params, self.frozen)[0])

  def _first_terms(self) -> tuple[dict[str, Any], dict[str, PyTree]]:
    """Initialises the terms with state: their parameters by path, the rest."""
    learned, running = {}, {}
    for term in self.method.terms:
      if term.init is None:
        continue
      # The key is of the term's name, whatever other terms there are.
      key = jax.random.key(self.config.seed)
      key = jax.random.fold_in(key, zlib.crc32(term.name.encode()))
      own, running[term.name] = term.init(key, self.model_config)
      for path, leaf in jax.tree_util.tree_flatten_with_path(own)[0]:
        name = parameters.path_name(path)
        learned[f"{parameters.TERMS}/{term.name}/{name}"] = leaf
    return learned, running


def averages(method: Method) -> dict[str, Average]:
  """Returns the models that are averages of the policy, by name."""
  return {
    name: model.source
    for name, model in method.models.items()
    if isinstance(model.source, Average)
  }


def build_parts(
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  layout: Layout,
  architectures: Mapping[str, ModelConfig],
) -> Parts:
  """Builds the parts of a run that need neither weights nor data.

  Args:
    config: see `mmrl.config`.
    model: the policy's architecture, with the run's compute type.
    layout: sharding of the run's arrays.
    architectures: of the other models; see `models.read_architectures`.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  _check_sizes(config, model, layout)
  runner.check_settings(config.evaluation.to_dict())
  source = _make_source(config, model, layout)
  layout = batches.check_group(layout, source.group)
  others = models_lib.bind(config, model, layout, architectures)
  for name, other in others.items():
    _check_layers(config, other.config, f"of model {name!r}, a")
  method = method_lib.bind(config, source, others)
  _check_weights(method)
  _check_shares(config, method)
  settings = source.temperature, tuple(config.attention.layers)
  apart = config.attention.heads == "apart"
  scorer = Scorer(model, *settings, config.attention.row, apart)
  optimizer = make_optimizer(
    config.optimizer.to_dict(), config.schedule.to_dict(), config.clip_norm
  )
  frozen = tuple(config.frozen)
  # Updates reuse the rollout's visual tokens if the vision tower is frozen.
  trainable, stays = parameters.partition(parameters.shapes(model), frozen)
  if models_lib.has_new_adapter(config):
    _check_adapter(stays)
  return Parts(
    config=config,
    model_config=model,
    scorer=scorer,
    source=source,
    method=method,
    asked=asking.open_later(
      models_lib.asked(config), list(layout.mesh.devices.flat)
    ),
    programs=_programs(config, scorer, method, optimizer, layout),
    answer=greedy.make_answer(scorer, config.rollout.length, layout),
    optimizer=optimizer,
    frozen=frozen,
    frozen_vision=not any(path.startswith("vision/") for path in trainable),
    pack=_pack(config, layout, source, method),
    layout=layout,
  )


def _check_adapter(frozen: Mapping[str, Any]) -> None:
  """Refuses new pairs that are frozen, which would stay zero."""
  pairs = [path for path in frozen if parameters.is_pair(path)]
  if pairs:
    raise UserError(
      f"config.frozen: expected the new adapter to train, found it frozen at"
      f" {pairs[0].rpartition('/')[0]}; change frozen, or the targets of"
      " config.models.policy.lora"
    )


def make_optimizer(
  optimizer: Mapping, schedule: Mapping, clip_norm: float
) -> optax.GradientTransformation:
  """Makes an optax optimiser on a schedule, after global-norm clipping.

  Args:
    optimizer: spec of an optax optimiser, without its learning rate.
    schedule: spec of an optax schedule, which counts optimiser updates.
    clip_norm: largest norm of the gradient; infinity clips nothing.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  rate = _construct(schedule, "config.schedule")
  update = _construct(optimizer, "config.optimizer", learning_rate=rate)
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)


def _construct(spec: Mapping, where: str, **fixed) -> Any:
  """Constructs a part of optax, which refuses options by its own errors."""
  try:
    return build.construct(optax, spec, where, **fixed)
  except UserError:
    raise
  except (ValueError, TypeError) as error:
    raise UserError(f"{where}: {error}") from error


def _make_source(
  config: ml_collections.ConfigDict, model: ModelConfig, layout: Layout
) -> Source:
  """Makes the source that `config.rollout` names."""

  def make(spec: Mapping[str, Any], where: str) -> Source:
    return build.construct(rollouts, spec, where, setup=setup)

  settings = config.rollout
  setup = Setup(
    prompts=settings.prompts,
    answers=settings.answers,
    length=settings.length,
    model=model,
    layers=tuple(config.attention.layers),
    layout=layout,
    rewards=method_lib.rewards_on_host(config),
    buckets=(len(config.data.lengths), len(config.data.patches)),
    inner=make,
  )
  spec = settings.to_dict()
  for name in ROLLOUT_SIZES:
    del spec[name]
  return make(spec, "config.rollout")


def _programs(
  config: ml_collections.ConfigDict,
  scorer: Scorer,
  method: Method,
  optimizer: optax.GradientTransformation,
  layout: Layout,
) -> Programs:
  """Builds the jitted programs of a step; each compiles at its first call."""
  terms, weights = method.terms, method.token_weights
  scorers = {"scorer": scorer} | {
    f"scorer_{name}": dataclasses.replace(scorer, config=model.config)
    for name, model in method.models.items()
  }
  return Programs(
    probe=step_lib.make_probe(scorers, method, layout),
    probes_apart={
      name: step_lib.make_probe_apart(
        name,
        scorers[f"scorer_{name}"],
        probes,
        method,
        method.models[name].layout,
      )
      for name, probes in method.probes_apart.items()
    },
    reward=step_lib.make_reward(method.rewards, layout),
    prepare=step_lib.make_prepare(
      method, layout, mask_truncated=config.rollout.mask_truncated
    ),
    update=step_lib.make_update(
      step_lib.make_loss(scorer, terms, weights),
      terms,
      optimizer,
      averages(method),
      layout,
      accumulate=config.train.accumulate,
      dtype=scorer.config.dtype,
    ),
    shares=step_lib.make_shares(
      scorer, terms, weights, layout, prompts=config.shares.prompts
    ),
  )


def _pack(
  config: ml_collections.ConfigDict,
  layout: Layout,
  source: Source,
  method: Method,
) -> int:
  """Computes the largest possible number of prompts per pack of pictures.

  Every cut through a batch (shards, minibatches, their parts, the prompts that
  shares of the gradient are measured on) must fall between packs.
  """
  parts = config.train.minibatches * config.train.accumulate * layout.shards
  prompts = config.rollout.prompts
  cuts = [prompts // parts]
  cuts += [prompts // m.layout.shards for m in method.models.values()]
  if source.draws:
    cuts.append(1)  # groups are exchanged one by one
  if config.shares.every:
    cuts.append(config.shares.prompts)
  return math.gcd(*cuts)


def _check_shares(config: ml_collections.ConfigDict, method: Method) -> None:
  """Checks that shares of the gradient are measured, if a weight needs them."""
  needing = weight.start(objective.weights_of(method.terms))
  if needing and not config.shares.every:
    raise UserError(
      f"config.losses.{min(needing)}.weight: expected config.shares.every of at"
      " least 1, as the weight follows from measured shares, found 0"
    )


def _check_weights(method: Method) -> None:
  """Checks that token weights act on something, once, where it knows them.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  reading = [t for t in method.terms if "token_weights" in t.bound.needs]
  weighted = [t for t in method.terms if "token_weights" in t.reduce.needs]
  late = [w for w in method.token_weights if step_lib.reads_scores(w)]
  if method.token_weights and not reading and not weighted:
    raise UserError(
      "config.token_weights: expected a loss that reads token_weights, or a"
      " weighted reduction, found none; reduce by weighted_token_mean, or take"
      " the weights out"
    )
  for term in weighted:
    if term in reading or late:
      what = f"{term.bound.name}, which has the weights in it"
      if late:
        what = f"{late[0].name}, which is known in an update only"
      raise UserError(
        f"{term.reduce.where}: expected no weights but its own, found {what};"
        f" reduce by {term.reduce.name.removeprefix('weighted_')}"
      )


def _check_sizes(
  config: ml_collections.ConfigDict, model: ModelConfig, layout: Layout
):
  counts = {
    "rollout": ("answers", "length"),
    "train": ("minibatches", "accumulate"),
  }
  for part, fields in counts.items():
    for field in fields:
      if config[part][field] < 1:
        raise UserError(
          f"config.{part}.{field}: expected at least 1, found"
          f" {config[part][field]}"
        )
  batches.check(
    batches.of_run(layout.mesh, model, config.rollout, config.train)
  )
  check_heads("config", model, layout)
  block = model.sparse.block if model.sparse else 1
  wrong = [length for length in config.data.lengths if length % block]
  if wrong:
    raise UserError(
      "config.models.policy.attention: expected blocks that divide"
      f" config.data.lengths, found {block} keys and a length of {wrong[0]};"
      " change one of them"
    )
  choices = {"row": ("self", "emit"), "heads": ("averaged", "apart")}
  for name, (one, other) in choices.items():
    found = config.attention[name]
    if found not in (one, other):
      raise UserError(
        f"config.attention.{name}: expected {one!r} or {other!r}, found"
        f" {found!r}"
      )
  _check_layers(config, model, "of a")


def _check_layers(
  config: ml_collections.ConfigDict, model: ModelConfig, whose: str
):
  depth = model.text.num_hidden_layers
  layers = config.attention.layers
  if not layers or any(not -depth <= layer < depth for layer in layers):
    raise UserError(
      f"config.attention.layers: expected layers {whose} {depth}-layer"
      f" decoder, found {tuple(layers)}"
    )
