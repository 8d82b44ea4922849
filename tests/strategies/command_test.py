"""The comparison of both models and their extrapolation on easy-VQA."""

import argparse
import dataclasses
import sys

import pytest
import small_models

from experiments import extrapolation
from mmrl import hub
from mmrl.errors import UserError


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


def make_model(**changes):
  config = dataclasses.replace(small_models.small_config(), **changes)
  return hub.Model(config, {}, small_models.make_processor(config))


def test_other_architectures_are_refused():
  extrapolation.check_same(make_model(), make_model())
  text = dataclasses.replace(make_model().config.text, hidden_size=48)
  with pytest.raises(UserError, match=r"text.hidden_size 32 in --base and 48"):
    extrapolation.check_same(make_model(), make_model(text=text))
  with pytest.raises(UserError, match=r"eos_token_id 258 in --base and 256"):
    extrapolation.check_same(make_model(), make_model(eos_token_id=256))


def test_other_tokenizers_are_refused():
  model = make_model()
  tiny = hub.load("tiny").processor.tokenizer
  processor = dataclasses.replace(model.processor, tokenizer=tiny)
  other = dataclasses.replace(model, processor=processor)
  with pytest.raises(UserError, match="expected two models with one tokenizer"):
    extrapolation.check_same(model, other)


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
    extrapolation.main()
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
