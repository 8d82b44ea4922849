"""Programs for a TPU, each compiled in a process of its own."""

import multiprocessing

import ml_collections
import pytest

from mmrl.errors import UserError
from mmrl.plan import apart

CONFIG = ml_collections.ConfigDict()


def begun(monkeypatch, answers):
  """Lets processes answer so; an answer that is missing is one that ended."""

  def begin(stack, config, topology, index):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    if index < len(answers):
      theirs.send(answers[index])
    theirs.close()
    return ours

  monkeypatch.setattr(apart, "_begin", begin)


def test_programs_come_in_order(monkeypatch):
  begun(monkeypatch, ["rollout", "update", None])
  assert list(apart.programs(CONFIG, "v5e:2x2")) == ["rollout", "update"]


def test_a_mistake_is_raised_here(monkeypatch):
  begun(monkeypatch, ["rollout", UserError("config.losses: expected")])
  found = apart.programs(CONFIG, "v5e:2x2")
  assert next(found) == "rollout"
  with pytest.raises(UserError, match="config.losses"):
    next(found)


def test_a_process_that_ends_is_one_line(monkeypatch):
  begun(monkeypatch, [])
  with pytest.raises(UserError, match="ended without an answer"):
    next(apart.programs(CONFIG, "v5e:2x2"))
