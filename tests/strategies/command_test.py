"""The comparison of both models and their extrapolation on easy-VQA."""

import argparse
import sys

import pytest

from experiments import arguments as command_lines
from experiments import extrapolation
from mmrl import hub


def flags(**changes):
  values = {
    "questions": 3,
    "answers": 2,
    "batch": 2,
    "length": 10,
    "temperature": 1.0,
    "top_p": 0.7,
    "threshold": [-0.3],
    "g": [0.5],
    "gate": "logp",
    "start": "base",
    "top_k": 0,
    "seed": 0,
  }
  return argparse.Namespace(**values | changes)


@pytest.mark.full
def test_equal_models_answer_alike():
  model = hub.load("tiny")
  rows = list(extrapolation.measure(model, model, flags()))
  names = [row["name"] for row in rows]
  assert names == ["base", "trained", "replacement", "extrapolation"]
  assert len({row["accuracy"] for row in rows}) == 1
  assert {row["replaced"] for row in rows} == {0.0}
  assert extrapolation.line(rows[3]).startswith(
    "| extrapolation | -0.3 | 0.5 |"
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--trained=nonesuch"], "expected a model directory, found none"),
    (["--trained=tiny", "--threshold=0.3"], "must be below 0, got 0.3"),
    (["--trained=tiny", "--gate=size"], "gate must be one of"),
    (["--trained=tiny", "--questions=0"], "expected --questions of at least 1"),
  ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["extrapolation", *arguments])
  with pytest.raises(SystemExit) as stopped:
    command_lines.run(extrapolation.main)
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
