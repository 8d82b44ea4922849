"""A config to everything a run needs, checked before anything starts."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmrl import (
  advantages,
  build,
  data,
  evaluate,
  models,
  probes,
  rewards,
  sharding,
  token_weights,
)
from mmrl.errors import UserError
from mmrl.models import parameters, weights
from mmrl.models.config import ModelConfig
from mmrl.models.processor import Processor
from mmrl.probes.policies import Scorer
from mmrl.sharding import Layout
from mmrl.train import objective
from mmrl.train import optimizer as optimizer_lib
from mmrl.train import step as step_lib
from mmrl.train.step import Programs, State
from mmrl.types import PyTree

# What the loop always has, whatever the probes.
_PROBE_DATA = ("scorer", "params", "params_ref", "prompt", "rollout")
_ALWAYS = ("rewards", "mask")
_SCORES = ("logprobs", "entropies", "attention")


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run computes with: all of it but weights and data.

  Attributes:
    model_config: the architecture, with the run's compute type.
    scorer: how answers are scored.
    programs: compiled functions.
    answer: greedy answers, jitted, for evaluation.
    optimizer: the optax transformation.
    frozen: parameter rules.
    frozen_vision: whether visual tokens outlive an update.
    group: prompts whose pictures are packed together.
    layout: where arrays live.
  """

  model_config: ModelConfig
  scorer: Scorer
  programs: Programs
  answer: Any
  optimizer: Any
  frozen: tuple[str, ...]
  frozen_vision: bool
  group: int
  layout: Layout

  def first_state(self, params: PyTree) -> State:
    """State of step 0, of arrays or of shapes that are traced."""
    trainable, frozen = optimizer_lib.partition(params, self.frozen)
    return State(
      step=jnp.zeros((), jnp.int32),
      trainable=trainable,
      frozen=frozen,
      optimizer=self.optimizer.init(trainable),
    )


@dataclasses.dataclass(frozen=True)
class Run(Parts):
  """A run, built.

  Attributes:
    processor: tokenizer and pictures.
    params: parameters that the run begins with; the reference, too.
    train_source, test_source: questions.
    rewards: (name, weight, function) of each part of the reward.
  """

  processor: Processor
  params: PyTree
  train_source: Any
  test_source: Any
  rewards: Sequence[tuple[str, float, build.Bound]]

  def initial_state(self) -> State:
    """State of step 0. Copies parameters: updates donate their state."""

    def make(params: PyTree) -> State:
      return self.first_state(jax.tree.map(jnp.copy, params))

    shapes = jax.eval_shape(make, self.params)
    return jax.jit(make, out_shardings=self.layout.of(shapes))(self.params)

  def at_step(self, state: State, step: int) -> State:
    """The state after that many rollout batches.

    The number lies where it lay, or programs would be compiled again for it.
    """
    number = self.layout.number(np.int32(step))
    return dataclasses.replace(state, step=number)


def load_model(
  config: ml_collections.ConfigDict, placement: weights.Placement | None = None
) -> models.Model:
  """The model of a config, with its compute type and pixel budget."""
  _check_types(config)
  model = models.load(
    config.model.path, dtype=config.model.param_dtype, placement=placement
  )
  model_config = compute_as(config, model.config)
  processor = with_budget(config, model.processor)
  processor = dataclasses.replace(processor, config=model_config)
  return models.Model(model_config, model.params, processor)


def with_budget(
  config: ml_collections.ConfigDict, processor: Processor
) -> Processor:
  """The processor with a run's settings of pictures and videos."""
  wanted = config.model
  return dataclasses.replace(
    processor,
    picture=_changed(
      processor.picture, {"max_pixels": wanted.max_pixels}, "config.model"
    ),
    video=_changed(
      processor.video, wanted.video.to_dict(), "config.model.video"
    ),
  )


def _check_types(config: ml_collections.ConfigDict) -> None:
  for field in ("dtype", "param_dtype"):
    if config.model[field] not in ("float32", "bfloat16"):
      raise UserError(
        f"config.model.{field}: expected 'float32' or 'bfloat16', found"
        f" {config.model[field]!r}"
      )


def compute_as(
  config: ml_collections.ConfigDict, model: ModelConfig
) -> ModelConfig:
  """The architecture with a run's compute type."""
  _check_types(config)
  wanted = config.model
  return dataclasses.replace(model, dtype=wanted.dtype, remat=wanted.remat)


def _changed(settings, values: Mapping[str, int | float], where: str):
  """Picture or video settings, with the values that aren't 0."""
  for name, value in values.items():
    if value < 0:
      raise UserError(f"{where}.{name}: expected at least 0, found {value}")
  changes = {name: value for name, value in values.items() if value}
  if "max_pixels" in changes:
    low = min(settings.min_pixels, changes["max_pixels"])
    changes["min_pixels"] = low
  if "max_frames" in changes:
    changes["min_frames"] = min(settings.min_frames, changes["max_frames"])
  return dataclasses.replace(settings, **changes)


def _check_sizes(
  config: ml_collections.ConfigDict, model: ModelConfig, layout: Layout
):
  prompts, parts = config.rollout.prompts, config.train.minibatches
  shards = layout.shards
  if prompts % (parts * config.train.accumulate * shards):
    on = f" x {shards} shards of the mesh" if shards > 1 else ""
    raise UserError(
      f"config.rollout.prompts: expected a multiple of train.minibatches x"
      f" train.accumulate{on} = {parts} x {config.train.accumulate}"
      f"{f' x {shards}' if on else ''}, found {prompts}"
    )
  tensor = layout.mesh.shape["tensor"]
  for name in ("num_attention_heads", "num_key_value_heads"):
    heads = getattr(model.text, name)
    if heads % tensor:
      raise UserError(
        f"config.mesh.tensor: expected a divisor of the model's {name},"
        f" {heads}, found {tensor}"
      )
  if config.rollout.answers < 2:
    raise UserError(
      "config.rollout.answers: expected at least 2, found"
      f" {config.rollout.answers}; an advantage compares answers"
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
  depth = model.text.num_hidden_layers
  layers = config.attention.layers
  if not layers or any(not -depth <= layer < depth for layer in layers):
    raise UserError(
      f"config.attention.layers: expected layers of a {depth}-layer decoder,"
      f" found {tuple(layers)}"
    )


def build_run(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Run:
  """Builds a run.

  Args:
    config: see `mmrl.train.defaults`.
    devices: that it runs on; all of them by default.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  layout = Layout(
    sharding.make_mesh(config.mesh.to_dict(), devices), config.train.minibatches
  )
  for name in ("lengths", "patches"):
    if jax.process_count() > 1 and len(config.data[name]) != 1:
      raise UserError(
        f"config.data.{name}: expected one size with several processes, which"
        f" would choose different ones, found {tuple(config.data[name])}"
      )
  model = load_model(config, layout.parameter)
  parts = build_parts(config, model.config, layout)
  return Run(
    **vars(parts),
    processor=model.processor,
    params=model.params,
    train_source=build.construct(
      data, config.data.train.to_dict(), "config.data.train"
    ),
    test_source=build.construct(
      data, config.data.test.to_dict(), "config.data.test"
    ),
    rewards=_bind_rewards(config.rewards.to_dict()),
  )


def build_parts(
  config: ml_collections.ConfigDict, model: ModelConfig, layout: Layout
) -> Parts:
  """Everything of a run that neither weights nor data are needed for.

  Args:
    config: see `mmrl.train.defaults`.
    model: the architecture, with the run's compute type.
    layout: where arrays live.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  _check_sizes(config, model, layout)
  scorer = Scorer(
    model,
    config.rollout.temperature or 1.0,
    tuple(config.attention.layers),
    config.attention.row,
  )
  specs = config.to_dict()
  bound_probes = [
    build.bind(probes, spec, f"config.probes.{name}", provided=_PROBE_DATA)
    for name, spec in specs["probes"].items()
  ]
  fields = [f for p in bound_probes for f in build.provides(p.function)]
  if "logprobs_old" not in fields:
    raise UserError("config.probes: expected probe 'behaviour', found none")
  remedies = {
    name: f"add probe {probe!r} to config.probes"
    for probe in probes.__all__
    for name in build.provides(getattr(probes, probe))
  }
  advantage = build.bind(
    advantages,
    specs["advantage"],
    "config.advantage",
    provided=(*_ALWAYS, *fields),
    remedies=remedies,
  )
  provided = (*_ALWAYS, "advantages", *fields, *_SCORES)
  token_weight = None
  if specs["token_weight"]["name"]:
    token_weight = build.bind(
      token_weights,
      specs["token_weight"],
      "config.token_weight",
      provided=provided,
      remedies=remedies,
    )
  provided = (*provided, "token_weights")
  terms = objective.build_terms(
    specs["losses"], provided=provided, remedies=remedies
  )
  optimizer = optimizer_lib.make(
    specs["optimizer"], specs["schedule"], config.clip_norm
  )
  loss = step_lib.make_loss(scorer, terms, token_weight)
  programs = Programs(
    rollout=step_lib.make_rollout(
      scorer,
      {k: v for k, v in specs["rollout"].items() if k != "prompts"},
      layout,
    ),
    probe=step_lib.make_probe(scorer, bound_probes, layout),
    prepare=step_lib.make_prepare(advantage, token_weight, layout),
    update=step_lib.make_update(
      loss, terms, optimizer, layout, accumulate=config.train.accumulate
    ),
    shares=step_lib.make_shares(
      scorer, terms, token_weight, layout, prompts=config.shares.prompts
    ),
  )
  frozen = tuple(config.frozen)
  trainable, _ = optimizer_lib.partition(parameters.shapes(model), frozen)
  return Parts(
    model_config=model,
    scorer=scorer,
    programs=programs,
    answer=evaluate.make_answer(scorer, config.rollout.length, layout),
    optimizer=optimizer,
    frozen=frozen,
    frozen_vision=not any(path.startswith("vision/") for path in trainable),
    group=_group(config, layout),
    layout=layout,
  )


def _group(config: ml_collections.ConfigDict, layout: Layout) -> int:
  """Prompts whose pictures are packed together.

  As many as can be: every cut through a batch (shards, minibatches, their
  parts, the prompts that shares of the gradient are measured on) falls between
  groups.
  """
  parts = config.train.minibatches * config.train.accumulate * layout.shards
  cuts = [config.rollout.prompts // parts]
  if config.shares.every:
    cuts.append(config.shares.prompts)
  return math.gcd(*cuts)


def _bind_rewards(specs: Mapping) -> list[tuple[str, float, build.Bound]]:
  bound = []
  for name, spec in specs.items():
    where = f"config.rewards.{name}"
    spec = dict(spec)
    if "weight" not in spec:
      raise UserError(f"{where}: expected a weight beside the name")
    weight = spec.pop("weight")
    function = build.bind(
      rewards, spec, where, provided=("text", "answer", "example")
    )
    bound.append((name, weight, function))
  return bound


def answer_rewards(
  parts: Sequence[tuple[str, float, build.Bound]],
  texts: Sequence[str],
  examples: Sequence[data.Example],
  pool,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Rewards of P * G answers, computed on the host, prompts in parallel.

  Args:
    parts: (name, weight, function) of each part.
    texts: prompt-major, as many answers for each example.
    examples: the questions.
    pool: an executor with `map`.

  Returns:
    (total [P, G], parts by name, each [P, G]).
  """
  group = len(texts) // len(examples)

  def one_prompt(p: int):
    example = examples[p]
    answers = texts[p * group : (p + 1) * group]
    return [
      [
        bound({"text": text, "answer": example.answer, "example": example})
        for text in answers
      ]
      for _, _, bound in parts
    ]

  values = np.array(list(pool.map(one_prompt, range(len(examples)))))
  values = values.astype(np.float32)
  named = {name: values[:, i] for i, (name, _, _) in enumerate(parts)}
  total = sum(weight * named[name] for name, weight, _ in parts)
  return np.asarray(total, np.float32), named
