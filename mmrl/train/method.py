"""Method of a config: the functions of its slots, bound and checked."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import inspect
from typing import Any

import ml_collections

from mmrl import advantages, build, probes, rewards, token_weights
from mmrl.errors import UserError
from mmrl.losses import reduce
from mmrl.rollouts.answers import HOST_DATA, TEXT_DATA, Reward
from mmrl.train import objective
from mmrl.train.objective import Term
from mmrl.train.rehearsal import rehearse
from mmrl.train.step import SCORES

# Arguments that probes may have in any config: of the run, of its teacher.
PROBE_DATA = (
  "scorer",
  "params",
  "params_ref",
  "prompt",
  "rollout",
  "scores_old",
)
TEACHER_DATA = ("scorer_teacher", "params_teacher", "prompt", "tokens")
# Arguments of a reward on the devices, besides the fields that probes add.
REWARD_DATA = ("mask", "tokens", "prompt", "length", "ended")
# Data available after grading, without any probe.
_ALWAYS = ("rewards", "mask", "key", "logprobs_sampler")


@dataclasses.dataclass(frozen=True)
class Method:
  """Bound functions in the slots of a run.

  Attributes:
    probes: probes of the run's own parameters.
    teacher_probes: probes of the teacher's.
    advantage: maps rewards to advantages.
    rewards: parts of the reward.
    token_weights: a token's weight is their product.
    terms: terms of the objective.
  """

  probes: Sequence[build.Bound]
  teacher_probes: Sequence[build.Bound]
  advantage: build.Bound
  rewards: Sequence[Reward]
  token_weights: Sequence[build.Bound]
  terms: Sequence[Term]

  @property
  def named(self) -> set[str]:
    """Returns the names of all data that functions other than probes read."""
    readers = [self.advantage, *self.token_weights]
    readers += [reward.bound for reward in self.rewards]
    readers += [term.bound for term in self.terms]
    return {name for bound in readers for name in bound.needs}


def expert_rows(config: ml_collections.ConfigDict) -> int:
  """Returns the number of expert rows per group; 0 without experts."""
  return config.experts.count if config.experts.path else 0


def bind(config: ml_collections.ConfigDict) -> Method:
  """Binds the functions that a config names to the data it provides.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  specs = config.to_dict()
  has_teacher = bool(specs["teacher"]["path"])
  experts = expert_rows(config)
  answers, length = config.rollout.answers + experts, config.rollout.length
  sizes = {"P": config.rollout.prompts, "G": answers, "R": length}

  def fill(package, spec, where, provided, remedies, **known) -> build.Bound:
    bound = build.bind(
      package, spec, where, provided=provided, remedies=remedies
    )
    rehearse(bound, where, sizes, **known)
    return bound

  # Slots are bound in the order of a run: each reads what earlier ones provide.
  to_read = dict.fromkeys(TEACHER_DATA, "set config.teacher.path")
  there = (*PROBE_DATA, *(TEACHER_DATA if has_teacher else ()))
  bound = [
    fill(probes, spec, f"config.probes.{name}", there, to_read)
    for name, spec in specs["probes"].items()
  ]
  fields = [f for p in bound for f in build.provides(p.function)]
  if "logprobs_old" not in fields:
    raise UserError("config.probes: expected probe 'behaviour', found none")
  remedies = {
    name: f"add probe {probe!r} to config.probes"
    for probe in probes.__all__
    for name in build.provides(getattr(probes, probe))
  }
  provided = (*_ALWAYS, *fields, *(("expert",) if experts else ()))
  advantage = fill(
    advantages, specs["advantage"], "config.advantage", provided, remedies
  )
  if experts:
    _check_tells_experts(advantage)
  provided = (*provided, "advantages", *SCORES)
  terms = objective.build_terms(
    specs["losses"],
    provided=[*(x for x in provided if x != "key"), "token_weights"],
    remedies=remedies,
  )
  minibatch = objective.minibatch(terms, config.train.accumulate)
  weigh = functools.partial(fill, token_weights, minibatch=minibatch)
  weights = [
    weigh(x, f"config.token_weights.{k}", (*provided, "minibatch"), remedies)
    for k, x in specs["token_weights"].items()
  ]
  _check_late(weights)
  for term in terms:
    _check_reduction(term, sizes)
  of_teacher = [p for p in bound if "params_teacher" in p.needs]
  method = Method(
    probes=[p for p in bound if p not in of_teacher],
    teacher_probes=of_teacher,
    advantage=advantage,
    rewards=bind_rewards(specs["rewards"], fields, remedies, sizes),
    token_weights=weights,
    terms=terms,
  )
  if has_teacher:
    _check_taught(method)
  return method


def _check_tells_experts(advantage: build.Bound) -> None:
  """Raises UserError if an advantage doesn't distinguish expert rows."""
  if "expert" not in advantage.needs:
    raise UserError(
      "config.advantage: expected one that tells experts from answers, such as"
      " expert_group_normalised, where config.experts.path is set; found"
      f" {advantage.name}"
    )


def _check_reduction(term: Term, sizes: Mapping[str, int]) -> None:
  """Traces a term and its reduction, and refuses one of another rank."""
  where = f"config.losses.{term.name}"
  values = rehearse(term.bound, where, sizes)
  rehearse(term.reduce, f"{where}.reduce", sizes, axis_name=None)
  if values is None:
    return
  rank = len(values.shape)
  fitting = reduce.BY_RANK.get(rank, ())
  if term.reduce.name not in fitting:
    letters = ", ".join("PGR"[:rank])
    raise UserError(
      f"{where}.reduce: expected a reduction of a term [{letters}], such as"
      f" {', '.join(fitting)}, found {term.reduce.name}"
    )


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


def _check_taught(method: Method) -> None:
  """Raises UserError if nothing reads the fields of the teacher's probes."""
  taught = {
    field
    for probe in method.teacher_probes
    for field in build.provides(probe.function)
  }
  if not taught & method.named:
    raise UserError(
      "config.teacher.path: expected probe 'teacher' and a loss that reads what"
      " it adds, such as distillation_kl, found none; set the path to '' or add"
      " them"
    )


def bind_rewards(
  specs: Mapping[str, Mapping[str, Any]],
  fields: Sequence[str],
  remedies: Mapping[str, str],
  sizes: Mapping[str, int],
) -> list[Reward]:
  """Binds the parts of a config's reward; calls none of them.

  Args:
    specs: specs of the rewards, each with a weight.
    fields: names of the fields that the probes add.
    remedies: see `build.bind`.
    sizes: see `rehearse`.

  Raises:
    UserError: naming the field of the config that is wrong.
  """
  found = []
  for name, spec in specs.items():
    where, spec = f"config.rewards.{name}", dict(spec)
    if "weight" not in spec:
      raise UserError(f"{where}: expected a weight beside the name")
    weight = spec.pop("weight")
    names = inspect.signature(build.lookup(rewards, spec, where)).parameters
    on_host = bool(set(TEXT_DATA) & set(names))
    provided = HOST_DATA if on_host else (*REWARD_DATA, *fields)
    bound = build.bind(
      rewards, spec, where, provided=provided, remedies=remedies
    )
    if not on_host:
      rehearse(bound, where, sizes)
    found.append(Reward(name, weight, bound))
  return found
