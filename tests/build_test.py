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
from mmrl.train import objective, optimizer, rehearsal
from mmrl.train import run as run_lib

PACKAGES = [advantages, losses, probes, rewards, token_weights]


def one_line(error) -> str:
  message = str(error.value)
  assert "\n" not in message
  return message


def attention_data():
  """Data arguments of the attention term, all of them."""
  return ("attention", "attention_old", "advantages", "mask")


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_lists_the_valid_ones(package):
  with pytest.raises(UserError) as error:
    build.bind(package, {"name": "nonesuch"}, "config.here", provided=())
  message = one_line(error)
  assert message.startswith("config.here: ")
  assert "'nonesuch'" in message
  for name in package.__all__:
    assert name in message


@pytest.mark.parametrize("spec", [{}, {"name": ""}, {"name": "reduce"}])
def test_what_is_no_public_function_is_unknown(spec):
  """`mmrl.losses.reduce` exists, but is no loss."""
  with pytest.raises(UserError, match="valid names: attention_distillation"):
    build.bind(losses, spec, "config.losses.x", provided=())


def test_unknown_keyword_lists_the_valid_ones():
  spec = {"name": "clipped_ratio", "clip_hihg": 0.28}
  with pytest.raises(UserError) as error:
    build.bind(losses, spec, "config.losses.policy", provided=())
  message = one_line(error)
  assert (
    "config.losses.policy: clipped_ratio has no option clip_hihg" in message
  )
  assert message.endswith("valid options: clip_low, clip_high, dual_clip")


def test_data_cannot_be_set_by_the_config():
  spec = {"name": "attention_jsd", "advantages": 1.0}
  with pytest.raises(
    UserError, match="has no option advantages; valid options: none"
  ):
    build.bind(losses, spec, "config.losses.x", provided=attention_data())


def test_missing_data_lists_what_is_provided():
  with pytest.raises(UserError) as error:
    build.bind(
      losses,
      {"name": "attention_jsd"},
      "config.losses.x",
      provided=("mask", "attention"),
    )
  message = one_line(error)
  assert "attention_jsd needs attention_old" in message
  assert message.endswith("provided are attention, mask")


def test_missing_data_has_a_remedy():
  with pytest.raises(UserError, match=r"needs attention_old.*; add probe 'x'"):
    build.bind(
      losses,
      {"name": "attention_jsd"},
      "config.losses.x",
      provided=("mask", "attention"),
      remedies={"attention_old": "add probe 'x'"},
    )


def test_option_without_a_default_must_be_given():
  with pytest.raises(UserError, match="x: soft_overlong needs buffer"):
    build.bind(
      rewards,
      {"name": "soft_overlong", "longest": 9},
      "config.rewards.x",
      provided=("length",),
    )


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
  ("changes", "message"),
  [
    ({"name": "adamx"}, "config.optimizer: optax has no 'adamx'"),
    (
      {"weight_deacy": 0.1},
      "adamw has no option weight_deacy; valid options: b1",
    ),
    # The schedule is the learning rate: the spec can't set a second one.
    ({"learning_rate": 0.1}, "adamw has no option learning_rate"),
  ],
)
def test_misspelt_optimizer(changes, message):
  config = config_lib.get_config()
  spec = config.optimizer.to_dict() | changes
  with pytest.raises(UserError) as error:
    optimizer.make(spec, config.schedule.to_dict(), config.clip_norm)
  assert message in one_line(error)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"name": "constant"}, "config.schedule: optax has no 'constant'"),
    ({"name": "constant_schedule"}, "constant_schedule needs value"),
    (
      {"name": "constant_schedule", "peak": 1.0},
      "constant_schedule has no option peak; valid options: value",
    ),
  ],
)
def test_misspelt_schedule(spec, message):
  with pytest.raises(UserError) as error:
    optimizer.make({"name": "adamw"}, spec, 1.0)
  assert message in one_line(error)


def test_construct_passes_options_and_fixed_arguments():
  rate = build.construct(
    optax, {"name": "constant_schedule", "value": 0.5}, "config.schedule"
  )
  assert rate(7) == 0.5


@pytest.mark.parametrize("missing", ["weight", "reduce"])
def test_term_needs_weight_and_reduction(missing):
  spec = {"name": "attention_jsd", "weight": 1.0, "reduce": "token_mean"}
  del spec[missing]
  with pytest.raises(UserError) as error:
    objective.build_terms({"x": spec}, provided=attention_data(), remedies={})
  assert one_line(error) == (
    f"config.losses.x: expected a '{missing}' beside the name"
  )


def test_unknown_reduction_lists_the_valid_ones():
  spec = {"name": "attention_jsd", "weight": 1.0, "reduce": "mean"}
  with pytest.raises(UserError) as error:
    objective.build_terms({"x": spec}, provided=attention_data(), remedies={})
  assert one_line(error) == (
    "config.losses.x.reduce: mmrl.losses.reduce has no 'mean'; valid names:"
    " sequence_mean, sequence_sum, token_mean, token_sum"
  )


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
    ("losses.kl.weight", None, "config.losses.kl: expected a 'weight'"),
    ("losses.kl.reduce", None, "config.losses.kl: expected a 'reduce'"),
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


def test_experts_need_an_advantage_that_knows_them():
  config = config_lib.get_config()
  config.experts.path = "experts.jsonl"
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert one_line(error) == (
    "config.advantage: expected one that tells experts from answers, such as"
    " expert_group_normalised, where config.experts.path is set; found"
    " group_normalised"
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
