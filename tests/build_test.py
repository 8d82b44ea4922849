"""Tests of the way from specs to functions: a mistake says what is valid."""

import functools
import inspect
import re
import types

import jax
import optax
import pytest

from mmrl import advantages, build, losses, probes, rewards, token_weights
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import optimizer, rehearsal
from mmrl.train import run as run_lib

PACKAGES = [advantages, losses, probes, rewards, token_weights]


def one_line(error) -> str:
  message = str(error.value)
  assert "\n" not in message
  return message


def refused(package, spec, provided=()) -> str:
  with pytest.raises(UserError) as error:
    build.bind(package, spec, "config.here", provided=provided)
  message = one_line(error)
  assert message.startswith("config.here: ")
  return message


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_lists_the_valid_ones(package):
  message = refused(package, {"name": "nonesuch"})
  assert "'nonesuch'" in message
  for name in package.__all__:
    assert name in message


NO_NAME = "valid names: attention_distillation"


@pytest.mark.parametrize(
  ("package", "spec", "provided", "message"),
  [
    # `mmrl.losses.reduce` exists, but is no loss.
    *[(losses, spec, (), NO_NAME) for spec in ({}, {"name": "reduce"})],
    (losses, {"name": ""}, (), NO_NAME),
    (
      *(losses, {"name": "clipped_ratio", "clip_hihg": 0.28}, ()),
      "clipped_ratio has no option clip_hihg; valid options: clip_low,"
      " clip_high, dual_clip",
    ),
    # Data can't be set by the config.
    (
      *(losses, {"name": "attention_jsd", "advantages": 1.0}),
      ("attention", "attention_old", "advantages", "mask"),
      "has no option advantages; valid options: none",
    ),
    (
      *(losses, {"name": "attention_jsd"}, ("mask", "attention")),
      "attention_jsd needs attention_old, which this run doesn't have; provided"
      " are attention, mask",
    ),
    (
      *(rewards, {"name": "soft_overlong", "longest": 9}, ("length",)),
      "soft_overlong needs buffer",
    ),
  ],
)
def test_what_cannot_be_bound(package, spec, provided, message):
  assert message in refused(package, spec, provided)


def test_optional_data_is_bound_where_there_is_some():
  def scaled(rewards, key=None, *, by=1.0):
    return rewards * by, key

  package = types.ModuleType("package")
  package.scaled = scaled
  for provided in (("rewards", "key"), ("rewards",)):
    bound = build.bind(
      package, {"name": "scaled", "by": 2.0}, "x", provided=provided
    )
    assert bound.needs == provided
    context = dict.fromkeys(provided, 3.0)
    assert bound(context) == (6.0, context.get("key"))


def test_bound_function_takes_its_data_by_name():
  bound = build.bind(
    rewards,
    {"name": "exact_answer"},
    "config.rewards.x",
    provided=("text", "answer", "example"),
  )
  assert bound.needs == ("text", "answer")
  context = {"example": None, "answer": ["B"]}
  context["text"] = [["<answer>B</answer>"]]
  assert bound(context) == 1
  bound = build.bind(
    rewards,
    {"name": "answer_format", "form": "answer"},
    "config.rewards.x",
    provided=("text",),
  )
  assert bound.options == {"form": "answer"}
  assert bound(context) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_positional_is_data_and_keyword_is_an_option(package):
  """The rule of the slots, for every method there is."""
  for name in package.__all__:
    parameters = inspect.signature(getattr(package, name)).parameters.values()
    for parameter in parameters:
      assert parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
      )
      if parameter.kind != inspect.Parameter.KEYWORD_ONLY:
        # None is for data that a run may lack.
        assert parameter.default in (parameter.empty, None), (
          f"{name}: {parameter}"
        )


def test_provides_reads_the_return_annotation():
  assert build.provides(probes.reference) == ("logprobs_ref",)
  assert "attention_old" in build.provides(probes.behaviour)


@pytest.mark.parametrize(
  ("change", "schedule", "message"),
  [
    ({"weight_deacy": 0.1}, {}, "adamw has no option weight_deacy; valid o"),
    # The schedule is the learning rate: the spec can't set a second one.
    ({"learning_rate": 0.1}, {}, "adamw has no option learning_rate"),
    ({}, {"name": "constant_schedule"}, "constant_schedule needs value"),
    (
      {},
      {"name": "constant_schedule", "peak": 1.0},
      "constant_schedule has no option peak; valid options: value",
    ),
  ],
)
def test_misspelt_optimizer_or_schedule(change, schedule, message):
  config = config_lib.get_config()
  spec = config.optimizer.to_dict() | change
  with pytest.raises(UserError) as error:
    optimizer.make(spec, schedule or config.schedule.to_dict(), 1.0)
  assert message in one_line(error)


def test_construct_passes_options_and_fixed_arguments():
  rate = build.construct(
    optax, {"name": "constant_schedule", "value": 0.5}, "config.schedule"
  )
  assert rate(7) == 0.5


def misspell(field, value):
  def change(config):
    *parents, last = field.split(".")
    node = config
    for parent in parents:
      node = node[parent]
    with node.unlocked():
      if value is None:
        del node[last]
      else:
        node[last] = value

  return change


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    (
      "advantage.name",
      "group_normalized",
      "config.advantage: mmrl.advantages has no 'group_normalized'; valid"
      " names: difficulty_aware",
    ),
    (
      "advantage.eps",
      1e-6,
      "group_normalised has no option eps; valid options",
    ),
    ("losses.kl.name", "kl", "valid names: attention_distillation, att"),
    ("losses.kl.beta", 0.1, "has no option beta; valid options: estimator"),
    ("losses.kl.weight", None, "config.losses.kl: expected a 'weight' besi"),
    ("losses.kl.reduce", None, "config.losses.kl: expected a 'reduce' besi"),
    (
      *("losses.kl.reduce", "mean"),
      "config.losses.kl.reduce: mmrl.losses.reduce has no 'mean'; valid names:"
      " answer_mean, prompt_mean, sequence_mean, sequence_sum, token_mean,"
      " token_sum",
    ),
    (
      *("experts.path", "experts.jsonl"),
      "config.advantage: expected one that tells experts from answers, such as"
      " expert_group_normalised, where config.experts.path is set; found"
      " group_normalised",
    ),
    (
      "probes.reference",
      None,
      "config.losses.kl: reference_kl needs logprobs_ref, which this run"
      " doesn't have; add probe 'reference' to config.probes",
    ),
    ("probes.behaviour", None, "expected probe 'behaviour'"),
    (
      "probes.behaviour.name",
      "behavior",
      "valid names: behaviour, image_blind",
    ),
    ("token_weights.x", {"name": "entropy"}, "valid names: entropy_quantile"),
    ("rewards.format.from", "think", "has no option from; valid options: form"),
    ("rewards.format.weight", None, "config.rewards.format: expected a weight"),
    ("rewards.accuracy.name", "exact", "valid names: answer_format, exact"),
    ("optimizer.name", "adamx", "config.optimizer: optax has no 'adamx'"),
    ("schedule.name", "linear", "config.schedule: optax has no 'linear'"),
    ("data.train.name", "VQA", "valid names: EasyVQA"),
    (
      "data.train.splt",
      "x",
      "EasyVQA has no option splt; valid options: split",
    ),
    ("data.train.split", None, "config.data.train: EasyVQA needs split"),
    ("frozen", ("visual/.*",), "'visual/.*' matches no parameter; paths begin"),
    ("rollout.answers", 0, "config.rollout.answers: expected at least 1"),
    (
      "rollout.answers",
      1,
      "config.advantage: group_normalised needs at least 2 answers per",
    ),
    ("rollout.refill.rounds", -1, "rollout.refill.rounds: expected at least 0"),
    ("advantage.scale", "grup", "config.advantage: scale must be 'group', 'b"),
    (
      "token_weights.x",
      {"name": "entropy_quantile", "quantile": 1.5},
      r"config.token_weights.x: quantile must be in \[0, 1\), got 1.5",
    ),
    (
      "probes.nucleus",
      {"name": "nucleus", "top_p": 2.0},
      r"config.probes.nucleus: top_p must be in \(0, 1\], got 2.0",
    ),
    (
      "losses.kl",
      {"name": "distillation_kl", "weight": 1.0, "reduce": "token_mean"},
      "needs logits_teacher, which this run doesn't have; add probe 'teacher'",
    ),
    (
      "losses.policy.clip_low",
      -0.5,
      r"config.losses.policy: clip_low must be in \[0, 1\), got -0.5",
    ),
    ("losses.kl.estimator", "k4", "config.losses.kl: estimator must be one of"),
    (
      "losses.kl",
      {
        "name": "reference_kl",
        "weight": 1.0,
        "reduce": {"name": "sequence_sum", "horizon": 0},
      },
      "config.losses.kl.reduce: horizon must be positive, got 0",
    ),
    (
      "rewards.long",
      {"name": "soft_overlong", "weight": 1.0, "longest": 5, "buffer": 9},
      r"config.rewards.long: buffer must be in \[1, longest\], got buffer=9",
    ),
    ("rollout.prompts", 5, "config.rollout.prompts: expected a multiple of"),
    ("attention.row", "own", "expected 'self' or 'emit', found 'own'"),
    ("attention.layers", (99,), "expected layers of a .*-layer decoder"),
    ("model.dtype", "float16", "expected 'float32' or 'bfloat16'"),
  ],
)
def test_run_refuses_a_mistake_in_the_config(field, value, message):
  config = config_lib.add_ral(config_lib.get_config())
  misspell(field, value)(config)
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert re.search(message, one_line(error)), one_line(error)


@pytest.mark.parametrize("name", ["leave_one_out", "reinforce_plus_plus"])
def test_a_penalty_needs_its_reference(name):
  config = config_lib.get_config()
  del config.losses["kl"], config.probes["reference"]
  config.advantage = {"name": name, "beta": 0.1}
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert one_line(error) == (
    "config.advantage: beta=0.1 needs logprobs_ref, which this run doesn't"
    " have; add probe 'reference' to config.probes or set beta to 0"
  )


@pytest.mark.parametrize(
  "function",
  [
    getattr(package, name)
    for package in (advantages, losses, token_weights)
    for name in package.__all__
  ],
)
def test_every_method_is_rehearsed(function):
  """None is left out because its data can't be made up."""
  calls = []

  @functools.wraps(function)
  def spy(**data):
    calls.append(data)
    return function(**data)

  parameters = inspect.signature(function).parameters.values()
  needs = [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]
  bound = build.Bound("", spy, tuple(needs), {})
  rehearsal.rehearse(bound, "", {"P": 2, "G": 3, "R": 5})
  assert len(calls) == 1
