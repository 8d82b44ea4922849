"""The table of names is what functions may ask for, and what a page says."""

import inspect
import pathlib
import re

from contract_test import METHODS, build_latent_parts, build_parts
import pytest

from mmrl import (
  advantages,
  build,
  losses,
  names,
  probes,
  rewards,
  rollouts,
  token_weights,
)
from mmrl import config as config_lib
from mmrl.losses.state import Stateful
from mmrl.rollouts import answers

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "names.md"
SLOTS = {
  advantages: names.ADVANTAGES,
  losses: names.LOSSES,
  probes: names.PROBES,
  rewards: names.REWARDS,
  token_weights: names.WEIGHTS,
}
# A spec of each source of answers; those that wrap wrap `sampled`.
SOURCES = {
  "conversed": {"environment": {"name": "scene_eye"}, "replies": 2},
  "given": {},
  "given_pairs": {"answers": 2, "pictures": True},
  "paired": {},
  "refilled": {"rounds": 1, "reward": "accuracy"},
  "sampled": {},
  "sampled_pairs": {"reward": "accuracy"},
  "tagged": {"tag": "back"},
  "with_experts": {"path": "", "accuracy": "accuracy"},
}


def test_the_page_is_the_table():
  """`python -m mmrl.names > docs/names.md` writes it anew."""
  assert PAGE.read_text("utf-8") == names.page()


def known(name: str) -> names.Name:
  """The row of a name, that of MODEL for any model's."""
  own = re.sub(r"^(params|scorer|ask)_\w+", r"\1_MODEL", name)
  own = re.sub(r"^reward_\w+", "reward_NAME", own)
  return names.NAMES[own]


def data(function) -> list[str]:
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind != p.KEYWORD_ONLY]


@pytest.mark.parametrize(
  ("package", "name"),
  [(package, name) for package in SLOTS for name in package.__all__],
  ids=lambda x: x if isinstance(x, str) else x.__name__.split(".")[-1],
)
def test_functions_ask_for_names_of_their_slot(package, name):
  function, slot = getattr(package, name), SLOTS[package]
  if package is rewards and answers.reads_texts(function):
    slot = names.TEXTS
  if inspect.signature(function).return_annotation is Stateful:
    function = function(**options_of(name)).term
  asked = data(function)
  assert asked
  for one in asked:
    assert slot in known(one).slots, one


def options_of(name: str) -> dict:
  return next(options for _, other, options in METHODS if other == name)


def test_the_fields_of_probes_are_in_the_table():
  added = {
    field
    for name in probes.__all__
    for field in build.provides(getattr(probes, name))
  }
  of_table = {k for k, x in names.NAMES.items() if x.source == "probes"}
  assert added == of_table


def make_source(name: str):
  config = config_lib.get_config()
  if name in ("paired", "refilled", "sampled_pairs", "tagged", "with_experts"):
    config_lib.wrap_rollout(config, name=name, **SOURCES[name])
  else:
    sizes = {key: config.rollout[key] for key in config_lib.ROLLOUT_SIZES}
    config.rollout = sizes | {"name": name, **SOURCES[name]}
  if name == "with_experts":
    config.advantage = {"name": "expert_group_normalised"}
  return build_parts(config).source


def test_the_fields_of_answers_are_in_the_table():
  """And so is what sources read to choose answers, and to measure them."""
  assert sorted(SOURCES) == sorted(rollouts.__all__)
  added = set()
  latent = build_latent_parts(config_lib.get_config()).source
  assert latent.fields == ("ended", "segment_pictures")
  for source in (latent, *map(make_source, SOURCES)):
    added |= {*source.fields}
    for one in (*source.reads, *(n for m in source.measures for n in data(m))):
      assert names.ADVANTAGES in known(one).slots, one
  of_table = {k for k, x in names.NAMES.items() if x.source == "rollouts"}
  assert added == of_table


def test_a_name_is_given_added_or_derived():
  sources = {one.source for one in names.NAMES.values()}
  assert sources == {
    *("run", "host", "rollouts", "models", "probes", "derived", "state"),
    "rewards",
  }
  derived = {k for k, x in names.NAMES.items() if x.source == "derived"}
  assert derived == set(names.DERIVED)
  for parts in (names.SCORES, *names.DERIVED.values()):
    assert set(parts) <= set(names.NAMES)
