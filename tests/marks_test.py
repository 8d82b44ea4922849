"""Tests of what a reward's function carries."""

import types

import pytest

from mmrl import build
from mmrl.errors import UserError
from mmrl.marks import marked


def make_package(function):
  package = types.ModuleType("rewards")
  package.mine = function
  return package


def test_the_function_stays_itself():
  def mine(text, *, level: int = 1):
    return text

  check, hint = print, str
  assert marked(check=check, hint=hint)(mine) is mine
  assert mine.check is check and mine.hint is hint


def test_without_marks_there_are_none():
  def mine(text):
    return text

  marked()(mine)
  assert not hasattr(mine, "check") and not hasattr(mine, "hint")


def test_options_are_checked_while_a_run_is_built():
  seen = []

  def check(*, level: int = 1):
    seen.append(level)
    if level > 2:
      raise UserError(f"expected a level of at most 2, found {level}")

  @marked(check=check)
  def mine(text, *, level: int = 1):
    raise AssertionError("called")

  def bind(**options):
    spec = {"name": "mine", **options}
    where = "config.rewards.x"
    return build.bind(make_package(mine), spec, where, provided=["text"])

  assert bind().name == "mine" and bind(level=2).options == {"level": 2}
  assert seen == [1, 2]
  with pytest.raises(UserError, match=r"^config.rewards.x: expected a level"):
    bind(level=3)
