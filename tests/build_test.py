"""Tests of the way from specs to functions: a mistake says what is valid."""

import functools
import inspect
import math
import re
import types

from contract_test import METHODS, build_latent_parts, build_parts
import jax
import optax
import pytest
from small_models import first

from mmrl import advantages, build, losses, probes, rewards, token_weights
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.losses.state import Stateful
from mmrl.rollouts import answers
from mmrl.train import parts as parts_lib
from mmrl.train import run as run_lib
from mmrl.train import walk

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


def test_what_is_no_number_is_refused():
  """NaN, which a check of a range doesn't see."""
  spec = {"name": "evidence_kl", "gate": math.nan}
  with pytest.raises(UserError, match="config.here.gate: .* number, found nan"):
    build.resolve(losses, spec, "config.here")


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
      "has no option advantages; valid options: over, good_only; adv",
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
    parts_lib.make_optimizer(spec, schedule or config.schedule.to_dict(), 1.0)
  assert message in one_line(error)


def test_construct_passes_options_and_fixed_arguments():
  rate = build.construct(
    optax, {"name": "constant_schedule", "value": 0.5}, "config.schedule"
  )
  assert rate(7) == 0.5


def refilled(**changes):
  """A spec of answers whose groups are drawn again."""
  spec = {"name": "refilled", "rounds": 1, "reward": "accuracy"}
  return spec | {"of": {"name": "sampled"}} | changes


def with_experts(**changes):
  """A spec of answers beside which there are experts'."""
  spec = {"name": "with_experts", "accuracy": "accuracy"}
  return spec | {"of": {"name": "sampled"}} | changes


def late(*row):
  """What is found in a trace, as another row is: in the full set."""
  return pytest.param(*row, marks=pytest.mark.full)


def misspell(field, value):
  def change(config):
    if field == "rollout":
      sizes = {name: config.rollout[name] for name in config_lib.ROLLOUT_SIZES}
      config.rollout = sizes | value
      return
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
      " answer_mean, prompt_mean, segment_mean, sequence_mean, sequence_sum,"
      " token_mean, token_sum",
    ),
    (
      "rollout",
      with_experts(path=""),
      "config.advantage: expected one that reads `sampled`, as groups also have"
      " answers that the policy didn't sample: expert_group_normalised; found"
      " group_normalised",
    ),
    (
      *("rollout", with_experts(path="", accuracy="right")),
      "config.rollout: accuracy: expected one of config.rewards, accuracy,"
      " format, found 'right'",
    ),
    (
      *("rollout", with_experts(path="", format="form")),
      "config.rollout: format: expected one of config.rewards, accuracy,"
      " format, found 'form'",
    ),
    (
      *("rollout", with_experts(path="", count=0)),
      "config.rollout: count: expected at least 1, found 0",
    ),
    (
      *("rollout", with_experts(path="", solved=2.0)),
      r"config.rollout: solved must be in \(0, 1\], got 2.0",
    ),
    (
      "models.reference",
      None,
      "config.losses.kl: reference_kl needs logprobs_ref, which this run"
      " doesn't have; add a model 'reference' to config.models",
    ),
    (
      "probes.behaviour",
      {"name": "behavior"},
      "config.probes.behaviour: mmrl.probes has no 'behavior'; valid names:"
      " attention_average, attention_reference, ",
    ),
    (
      "probes.entropy",
      {"name": "visual_entropy"},
      "config.probes.entropy: expected a function that reads visual_entropy,"
      " found none; take the probe out",
    ),
    (
      *("probes.taught", {"name": "teacher"}),
      "config.probes.taught: teacher needs scorer_teacher, which this run"
      " doesn't have; add a model 'teacher' to config.models",
    ),
    (
      *("models.teacher", {"name": "Directory", "path": "tiny"}),
      "config.models.teacher: expected a probe, a reward or a loss that reads"
      " params_teacher or logits_teacher or attention_teacher, found none; take"
      " the model out, or add one",
    ),
    (
      *("models.slow", {"name": "Average", "decay": 2.0}),
      r"config.models.slow: expected decay in \[0, 1\), every of at least 1 and"
      " rise_over of at least 0, found 2.0, 1 and 0",
    ),
    (
      *("models.slow", {"name": "Directory", "path": "x", "dtype": "float16"}),
      "config.models.slow.dtype: expected one of 'float32', 'bfloat16', found"
      " 'float16'",
    ),
    (
      *("models.slow", {"name": "Mean"}),
      "config.models.slow: mmrl.train.models has no 'Mean'; valid names:"
      " Average, Directory, Endpoint, Initial",
    ),
    ("token_weights.x", {"name": "entropy"}, "valid names: entropy_quantile"),
    ("rewards.format.from", "think", "has no option from; valid options: form"),
    ("rewards.format.weight", None, "config.rewards.format: expected a weight"),
    ("rewards.accuracy.name", "exact", "valid names: accuracy, answer_f"),
    ("optimizer.name", "adamx", "config.optimizer: optax has no 'adamx'"),
    ("schedule.name", "linear", "config.schedule: optax has no 'linear'"),
    ("data.train.name", "VQA", "valid names: .* EasyVQA,"),
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
    ("rollout.length", 0, "config.rollout.length: expected at least 1"),
    (
      *("rollout", refilled(rounds=-1)),
      "config.rollout: rounds: expected at least 0, found -1",
    ),
    (
      *("rollout", refilled(reward="right")),
      "config.rollout: reward: expected one of config.rewards that reads texts,"
      " accuracy, format, found 'right'",
    ),
    (
      *("rollout", refilled(of={"name": "sampled", "top_p": 2.0})),
      r"config.rollout.of: expected temperature and top_k of at least 0 and"
      r" top_p in \(0, 1\], found 1.0, 0 and 2.0",
    ),
    (
      *("rollout", refilled(of={"name": "drawn"})),
      "config.rollout.of: mmrl.rollouts has no 'drawn'; valid names: .* given,",
    ),
    ("rollout.name", "drawn", "config.rollout: mmrl.rollouts has no 'drawn'"),
    (
      "rollout.temperature",
      -1.0,
      r"config.rollout: expected temperature and top_k of at least 0 and top_p"
      r" in \(0, 1\], found -1.0, 0 and 1.0",
    ),
    ("rollout.top_k", -1, "config.rollout: expected temperature and top_k"),
    late(
      *("advantage.scale", "grup"),
      "config.advantage: scale must be 'group', 'b",
    ),
    (
      "token_weights.x",
      {"name": "entropy_quantile", "quantile": 1.5},
      r"config.token_weights.x: quantile must be in \[0, 1\), got 1.5",
    ),
    (
      "losses.kl",
      {"name": "distillation_kl", "weight": 1.0, "reduce": "token_mean"},
      "needs logits_teacher, which this run doesn't have; add a model 'teacher'"
      " to config.models",
    ),
    (
      "losses.policy.clip_low",
      -0.5,
      r"config.losses.policy: clip_low must be in \[0, 1\), got -0.5",
    ),
    late(
      *("losses.kl.estimator", "k4"),
      "config.losses.kl: estimator must be one of",
    ),
    (
      "losses.kl",
      {
        "name": "reference_kl",
        "weight": 1.0,
        "reduce": {"name": "sequence_sum", "horizon": 0},
      },
      "config.losses.kl.reduce: horizon must be positive, got 0",
    ),
    late(
      "rewards.long",
      {"name": "soft_overlong", "weight": 1.0, "longest": 5, "buffer": 9},
      r"config.rewards.long: buffer must be in \[1, longest\], got buffer=9",
    ),
    ("rollout.prompts", 5, "config.rollout.prompts: expected a multiple of"),
    ("attention.row", "own", "expected 'self' or 'emit', found 'own'"),
    ("attention.layers", (99,), "expected layers of a .*-layer decoder"),
    (
      *("models.policy.dtype", "float16"),
      "config.models.policy.dtype: expected 'float32' or 'bfloat16'",
    ),
  ],
)
def test_run_refuses_a_mistake_in_the_config(field, value, message):
  config = config_lib.add_ral(config_lib.get_config())
  misspell(field, value)(config)
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert re.search(message, one_line(error)), one_line(error)


def test_run_refuses_a_mistake_in_a_probe_that_is_read():
  config = config_lib.get_config()
  config.probes.nucleus = {"name": "nucleus", "top_p": 2.0}
  config.token_weights.tor = {"name": "perception_reasoning"}
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert one_line(error) == (
    "config.probes.nucleus: top_p must be in (0, 1], got 2.0"
  )


def test_run_refuses_a_mistake_in_a_term_with_state(monkeypatch):
  """Its options are read where it is made."""

  def remembered(*, decay: float) -> Stateful:
    raise UserError(f"decay must be below 1, got {decay}")

  monkeypatch.setattr(losses, "remembered", remembered, raising=False)
  monkeypatch.setattr(losses, "__all__", [*losses.__all__, "remembered"])
  config = config_lib.get_config()
  spec = {"name": "remembered", "weight": 1.0, "reduce": "token_mean"}
  config.losses.own = {**spec, "decay": 2.0}
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert one_line(error) == (
    "config.losses.own: decay must be below 1, got 2.0"
  )


@pytest.mark.parametrize("name", first("leave_one_out", "reinforce_plus_plus"))
def test_a_penalty_needs_its_reference(name):
  config = config_lib.get_config()
  del config.losses["kl"]
  config.advantage = {"name": name, "beta": 0.1}
  with pytest.raises(UserError) as error:
    run_lib.build_run(config, jax.devices()[:1])
  assert one_line(error) == (
    "config.advantage: beta=0.1 needs logprobs_ref, which this run doesn't"
    " have; add probe 'reference' to config.probes or set beta to 0"
  )


# Ranks of terms with state.
STATEFUL = {"visual_reconstruction": "P"}
# All but the rewards that read texts, on the host.
TRACED = [
  (package, name, options)
  for package, name, options in METHODS
  if not answers.reads_texts(getattr(package, name))
]


@pytest.fixture(scope="module")
def traced() -> dict[str, list[set[str]]]:
  """For each function of a slot, the arguments of its calls in built runs.

  One run has all terms, token weights, rewards and probes; a second one has
  them with experts, one has the terms of pairs, one replies in its answers, and
  there is one for each other advantage.
  """
  calls: dict[str, list[set[str]]] = {}

  def spy_on(function, name):
    @functools.wraps(function)
    def spy(**data):
      if inspect.signature(function).return_annotation is Stateful:
        made = function(**data)
        return made._replace(term=spy_on(made.term, name))
      calls.setdefault(name, []).append({*data})
      return function(**data)

    return spy

  options = {name: {"name": name, **options} for _, name, options in TRACED}
  of_pairs = [
    name
    for name in losses.__all__
    if "chosen" in inspect.signature(getattr(losses, name)).parameters
  ]

  def with_everything(advantage: str, target: str):
    config = config_lib.get_config()
    config.models.teacher = {"name": "Directory", "path": "tiny"}
    config.models.average = {"name": "Average", "decay": 0.9, "every": 1}
    config.probes.target = {"name": f"attention_{target}"}
    config.advantage = options[advantage]
    for package, name, _ in TRACED:
      if name in of_pairs or name == "latent_alignment":
        continue
      if package is losses:
        ranks = {
          "P G R": "token_mean",
          "P G": "answer_mean",
          "P": "prompt_mean",
        }
        returned = inspect.signature(getattr(losses, name)).return_annotation
        rank = getattr(returned, "dim_str", STATEFUL.get(name))
        config.losses[name] = options[name] | {
          "weight": 1.0,
          "reduce": ranks[rank],
        }
      elif package is token_weights and name != "own_tokens":
        config.token_weights[name] = options[name]
      elif package is rewards:
        config.rewards[name] = options[name] | {"weight": 1.0}
    return config_lib.wrap_rollout(config, name="tagged", tag="back")

  def with_pairs():
    config = config_lib.get_config()
    config.rollout = {
      name: config.rollout[name] for name in config_lib.ROLLOUT_SIZES
    } | {"name": "given_pairs", "answers": 2, "pictures": True}
    config.losses = {
      name: options[name] | {"weight": 1.0, "reduce": "prompt_mean"}
      for name in of_pairs
    }
    return config

  def with_replies():
    config = config_lib.get_config()
    sizes = {name: config.rollout[name] for name in config_lib.ROLLOUT_SIZES}
    config.rollout = sizes | {
      "name": "conversed",
      "environment": {"name": "scene_eye"},
      "replies": 1,
    }
    config.token_weights.own = options["own_tokens"]
    config.shares.every = 0
    return config

  def with_segments():
    config = config_lib.get_config()
    config.losses = {
      "alignment": options["latent_alignment"]
      | {"weight": 1.0, "reduce": "segment_mean"}
    }
    config.rewards = {}
    config.shares.every = 0
    return config

  def with_little(advantage: str):
    config = config_lib.get_config()  # whose KL reads the reference
    config.advantage = options[advantage]
    config.shares.every = 0
    return config

  experts = with_everything("expert_group_normalised", "reference")
  config_lib.wrap_rollout(
    experts, name="with_experts", path="", accuracy="accuracy"
  )
  experts.shares.every = 0
  everything = with_everything("difficulty_aware", "average")
  configs = [experts, everything, with_pairs(), with_replies()]
  configs += [
    with_little(name)
    for name in advantages.__all__
    if name not in ("expert_group_normalised", "difficulty_aware")
  ]
  with pytest.MonkeyPatch.context() as patch:
    for package, name, _ in TRACED:
      patch.setattr(package, name, spy_on(getattr(package, name), name))
    for config in configs:
      walk.check(build_parts(config))
    walk.check(build_latent_parts(with_segments()))
  return calls


@pytest.mark.full
@pytest.mark.parametrize(
  ("package", "name"),
  [row[:2] for row in TRACED],
  ids=lambda x: x if isinstance(x, str) else x.__name__.split(".")[-1],
)
def test_every_function_is_traced_before_a_run(traced, package, name):
  """With all data that it may have: its options are checked, and its shapes."""
  parameters = inspect.signature(getattr(package, name)).parameters.values()
  wanted = {p.name for p in parameters if p.kind != p.KEYWORD_ONLY}
  assert any(wanted <= found for found in traced[name])
