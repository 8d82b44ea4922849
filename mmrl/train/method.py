"""Method of a config: the functions of its slots, bound and checked.

What a run computes follows from the names that its functions read: a probe is
run if one of them names a field of it, and a model is kept if one of them, or
such a probe, names its parameters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

import ml_collections

from mmrl import (
  advantages,
  build,
  errors,
  names,
  probes,
  rewards,
  token_weights,
)
from mmrl.errors import UserError
from mmrl.names import SCORES
from mmrl.rollouts import answers
from mmrl.rollouts.answers import Reward, reads_texts
from mmrl.rollouts.source import Source
from mmrl.train import models as models_lib
from mmrl.train import objective
from mmrl.train.models import Initial, Model
from mmrl.train.objective import Term

# What a probe on a mesh of its own can read, besides its model.
_RESHARDED = {"prompt", "tokens", "mask", "length"}


@dataclasses.dataclass(frozen=True)
class Method:
  """Bound functions in the slots of a run.

  Attributes:
    probes: those on the run's mesh.
    probes_apart: those of each model on a mesh of its own, by its name.
    measures: functions that return numbers to log.
    advantage: maps rewards to advantages; None where nothing reads these.
    rewards: parts of the reward.
    token_weights: a token's weight is their product.
    terms: terms of the objective.
    models: those that are read, by name.
    fields: names of the probes' fields that are read after the probes.
  """

  probes: Sequence[build.Bound]
  probes_apart: Mapping[str, Sequence[build.Bound]]
  measures: Sequence[build.Bound]
  advantage: build.Bound | None
  rewards: Sequence[Reward]
  token_weights: Sequence[build.Bound]
  terms: Sequence[Term]
  models: Mapping[str, Model]
  fields: frozenset[str]

  @property
  def graded(self) -> dict[str, str]:
    """Returns the rewards of texts that others read, by what they call them."""
    read = {n for x in self.rewards if not x.on_host for n in x.bound.needs}
    graded = {f"reward_{x.name}": x.name for x in self.rewards if x.on_host}
    return {field: name for field, name in graded.items() if field in read}


@dataclasses.dataclass(frozen=True)
class _Slot:
  """A function of a config that is looked up, but not bound yet."""

  package: Any
  spec: Mapping[str, Any]
  where: str

  @property
  def required(self) -> list[str]:
    """Returns the names that it can't do without."""
    function, _ = build.resolve(self.package, self.spec, self.where)
    return build.required(function)

  @property
  def provides(self) -> tuple[str, ...]:
    """Returns the fields that it adds, of a probe."""
    function = build.lookup(self.package, self.spec, self.where)
    with errors.of_field(self.where):
      return build.provides(function)

  def bind(self, provided: Iterable[str], remedies) -> build.Bound:
    """Binds it to the names that a run provides."""
    return build.bind(
      self.package,
      self.spec,
      self.where,
      provided=provided,
      remedies=remedies,
    )


@dataclasses.dataclass(frozen=True)
class _Slots:
  """The functions of a config but its probes, looked up and not bound yet."""

  rewards: Mapping[str, _Slot]
  reward_settings: Mapping[str, Mapping[str, Any]]
  advantage: _Slot | None
  token_weights: Sequence[_Slot]
  terms: Sequence[objective.Resolved]

  @classmethod
  def of(cls, specs: Mapping[str, Any]) -> "_Slots":
    """Looks up the functions; the advantage only if something reads it."""
    rewarding, settings = _resolve_rewards(specs["rewards"])
    weighing = [
      _Slot(token_weights, spec, f"config.token_weights.{name}")
      for name, spec in specs["token_weights"].items()
    ]
    terms = objective.resolve_terms(specs["losses"])
    found = cls(rewarding, settings, None, weighing, terms)
    if "advantages" in found.wanted:
      advantage = _Slot(advantages, specs["advantage"], "config.advantage")
      found = dataclasses.replace(found, advantage=advantage)
    return found

  @property
  def wanted(self) -> list[str]:
    """Returns the names that the functions can't do without."""
    slots = [*self.rewards.values(), *self.token_weights]
    slots += [self.advantage] if self.advantage else []
    found = [name for slot in slots for name in slot.required]
    return found + [n for t in self.terms for n in build.required(t.function)]


def bind(
  config: ml_collections.ConfigDict,
  source: Source,
  models: Mapping[str, Model],
) -> Method:
  """Binds the functions that a config names to the data it provides.

  Args:
    config, source: of the run, and where its answers come from.
    models: those that the config has besides the policy.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  specs = config.to_dict()
  slots = _Slots.of(specs)
  wanted = slots.wanted + list(source.reads)
  wanted += [n for one in source.measures for n in build.required(one)]
  wanted += [n for name in wanted for n in names.DERIVED.get(name, ())]
  of_models = [f"params_{name}" for name in models]
  to_probes = names.given(names.PROBES)
  to_probes += names.allowed(names.PROBES, source.fields)
  to_probes += [*of_models, *(f"scorer_{name}" for name in models)]
  probing, remedies = _choose_probes(specs["probes"], wanted, to_probes)
  remedies |= {
    name: "choose a config.rollout that adds it, see docs/names.md"
    for name, one in names.NAMES.items()
    if one.source == "rollouts"
  }
  graded = [name for name in wanted if name.startswith("reward_")]
  remedies |= {n: f"add a reward of texts called {n[7:]!r}" for n in graded}
  bound = [slot.bind(to_probes, remedies) for slot in probing]
  fields = [f for p in bound for f in build.provides(p.function)]
  fields += source.fields

  def provided(slot: str) -> list[str]:
    found = names.given(slot) + names.allowed(slot, fields)
    if slot in names.NAMES["params_MODEL"].slots:
      found += of_models
    if slot == names.TEXTS:
      found += [f"ask_{name}" for name in models_lib.asked(config)]
    if slot == names.REWARDS:
      found += [f"reward_{n}" for n, x in slots.rewards.items() if _on_host(x)]
    if not slots.advantage:
      found = [name for name in found if name != "advantages"]
    return found

  method = _bind_slots(slots, provided, remedies)
  measures = [
    build.bind_function(
      *(one.__name__, one, {}, "config.rollout"),
      provided=provided(names.ADVANTAGES),
    )
    for one in source.measures
  ]
  own: Any = {"probes": bound, "measures": measures, "models": models}
  method = dataclasses.replace(method, **own)
  if "sampled" in fields and method.advantage:
    _check_reads_sampled(method.advantage)
  _check_late(method.token_weights)
  return _without_unread(method, source, specs["probes"])


def _bind_slots(
  slots: _Slots, provided: Callable[[str], list[str]], remedies
) -> Method:
  """Binds all functions but probes and measures."""
  rewarding = {
    name: slot.bind(
      provided(names.TEXTS if _on_host(slot) else names.REWARDS), remedies
    )
    for name, slot in slots.rewards.items()
  }
  advantage = None
  if slots.advantage:
    advantage = slots.advantage.bind(provided(names.ADVANTAGES), remedies)
  return Method(
    probes=(),
    probes_apart={},
    measures=(),
    advantage=advantage,
    rewards=[
      Reward(name, bound=bound, **slots.reward_settings[name])
      for name, bound in rewarding.items()
    ],
    token_weights=[
      slot.bind(provided(names.WEIGHTS), remedies)
      for slot in slots.token_weights
    ],
    terms=objective.bind_terms(
      slots.terms, provided=provided(names.LOSSES), remedies=remedies
    ),
    models={},
    fields=frozenset(),
  )


def _check_reads_sampled(advantage: build.Bound) -> None:
  """Checks that an advantage tells sampled answers from others."""
  if "sampled" in advantage.needs:
    return
  able = [
    name
    for name in advantages.__all__
    if "sampled" in inspect.signature(getattr(advantages, name)).parameters
  ]
  raise UserError(
    "config.advantage: expected one that reads `sampled`, as groups also have"
    f" answers that the policy didn't sample: {', '.join(able)}; found"
    f" {advantage.name}"
  )


def _resolve_rewards(
  specs: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, _Slot], dict[str, dict[str, Any]]]:
  """Separates the functions of a config's rewards from how they count."""
  slots, settings = {}, {}
  for name, given in specs.items():
    where, spec = f"config.rewards.{name}", dict(given)
    settings[name] = answers.take_settings(spec, where, {*specs} - {name})
    slots[name] = _Slot(rewards, spec, where)
  return slots, settings


def _on_host(slot: _Slot) -> bool:
  return reads_texts(build.lookup(slot.package, slot.spec, slot.where))


def rewards_on_host(config: ml_collections.ConfigDict) -> dict[str, bool]:
  """Tells of each reward of a config whether it runs on the host."""
  slots, _ = _resolve_rewards(config.rewards.to_dict())
  return {name: _on_host(slot) for name, slot in slots.items()}


def _choose_probes(
  specs: Mapping[str, Mapping], wanted: Sequence[str], provided: Sequence[str]
) -> tuple[list[_Slot], dict[str, str]]:
  """Chooses a run's probes: those of its config, and those that it needs.

  Args:
    specs: those of the config.
    wanted: names that the run's functions need.
    provided: names that probes can read.

  Returns:
    (probes, remedies for names that none of them adds).
  """
  slots = [
    _Slot(probes, spec, f"config.probes.{name}") for name, spec in specs.items()
  ]
  there = {field for slot in slots for field in slot.provides}
  read = [
    *wanted,
    *(n for p in probes.__all__ for n in build.required(getattr(probes, p))),
  ]
  remedies = {
    name: f"add a model {name.split('_', 1)[1]!r} to config.models"
    for name in read
    if name.startswith(("params_", "scorer_", "ask_"))
  }
  for probe in probes.__all__:
    function = getattr(probes, probe)
    added = build.provides(function)
    lacking = [n for n in build.required(function) if n not in provided]
    if lacking:
      how = remedies.get(lacking[0], f"it needs {lacking[0]}")
      remedies |= dict.fromkeys(added, how)
    elif set(added) & set(wanted) - there:
      slots.append(_Slot(probes, {"name": probe}, f"probe {probe}"))
    else:
      how = f"add probe {probe!r} to config.probes"
      remedies |= dict.fromkeys(added, how)
  return slots, remedies


def _check_late(weights: Sequence[build.Bound]) -> None:
  """Checks that each token weight can be computed in an update or before it.

  Weights that read current scores are computed in updates, others before.

  Raises:
    TypeError: for a function that can be computed at neither time.
  """
  for one in weights:
    late = bool(set(SCORES) & set(one.needs))
    if "key" in one.needs and late:
      raise TypeError(f"{one.name}: there are no random keys in an update")
    if "minibatch" in one.needs and not late:
      raise TypeError(f"{one.name}: it is computed once per rollout batch")


def _without_unread(
  method: Method, source: Source, explicit: Mapping[str, Mapping]
) -> Method:
  """Separates probes by mesh, and drops fields and models that none reads.

  Raises:
    UserError: if a probe or a model of the config has no reader.
  """
  later = [method.advantage] if method.advantage else []
  later += [reward.bound for reward in method.rewards]
  later += [*method.token_weights, *(term.bound for term in method.terms)]
  read = {name for bound in later for name in bound.needs} | {*source.reads}
  read |= {n for name in read for n in names.DERIVED.get(name, ())}
  measured = {name for bound in method.measures for name in bound.needs}
  for name, bound in zip(explicit, method.probes, strict=False):
    added = build.provides(bound.function)
    if not (read | measured) & set(added):
      raise UserError(
        f"config.probes.{name}: expected a function that reads"
        f" {' or '.join(added)}, found none; take the probe out"
      )
  apart: dict[str, list[build.Bound]] = {}
  for bound in (*method.probes, *later):
    for name, model in method.models.items():
      if f"params_{name}" not in bound.needs or not _is_apart(model):
        continue
      own = {f"params_{name}", f"scorer_{name}"}
      others = sorted(set(bound.needs) - own - _RESHARDED)
      if others or bound in later:
        raise UserError(
          f"config.models.{name}.mesh: expected none, as {bound.where} also"
          f" reads {', '.join(others) or 'the batch'} on the run's mesh; take"
          " the mesh out"
        )
      apart.setdefault(name, []).append(bound)
  named = {name for bound in (*method.probes, *later) for name in bound.needs}
  models = {}
  for name, model in method.models.items():
    if f"params_{name}" in named:
      models[name] = model
    elif not isinstance(model.source, Initial):
      raise UserError(_unread_model(name))
  return dataclasses.replace(
    method,
    probes=[
      p for p in method.probes if not any(p in x for x in apart.values())
    ],
    probes_apart=apart,
    models=models,
    # Whose change is logged at every update.
    fields=frozenset(read | {"logprobs_old"}),
  )


def _is_apart(model: Model) -> bool:
  return getattr(model.source, "mesh", None) is not None


def _unread_model(name: str) -> str:
  """Explains that nothing reads a model, and what would."""
  fields = [
    field
    for probe in probes.__all__
    if f"params_{name}" in build.required(getattr(probes, probe))
    for field in build.provides(getattr(probes, probe))
  ]
  readers = " or ".join([f"params_{name}", *fields])
  return (
    f"config.models.{name}: expected a probe, a reward or a loss that reads"
    f" {readers}, found none; take the model out, or add one"
  )
