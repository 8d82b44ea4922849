"""Texts to learn Look-Back from, of both variants and of the control."""

import pytest

from experiments import look_back, second_looks, tiny_model
from mmrl import data, hub
from mmrl.rewards.looks import back


def test_what_is_taught():
  """The segment is in the middle of a solution, or behind a whole one."""
  found = {
    variant: second_looks.text("red circle", "yes", variant)
    for variant in second_looks.VARIANTS
  }
  box = r"\boxed{yes}"
  assert found == {
    "semantic": (
      "<think>red circle</think> <back>red circle</back>"
      f" <think>yes</think> {box}"
    ),
    "solution": (
      "<think>red circle yes</think> <back>red circle</back>"
      f" <think>yes</think> {box}"
    ),
    "control": f"<think>red circle red circle yes</think> {box}",
  }
  formed = {name: back.is_formed(text) for name, text in found.items()}
  assert formed == {"semantic": True, "solution": True, "control": False}


@pytest.mark.parametrize("variant", second_looks.VARIANTS)
def test_the_texts_fit_into_the_arm_s_answers(variant):
  source = data.EasyVQA(split="train")
  longest = {
    tuple(row["answers"]) for row in second_looks.rows(source, variant)
  }
  tokenizer = hub.load("tiny").processor.tokenizer
  arm = {"semantic": "", "control": ",control", "solution": ",solution"}
  for stage in ("", ",cold"):
    config = look_back.get_config(f"runlocal{arm[variant]}{stage}")
    # One more ends them.
    for (text,) in longest:
      assert len(tokenizer.encode(text)) < config.rollout.length


def test_each_arm_begins_with_what_its_own_texts_taught():
  for arm in ("", ",solution", ",control"):
    folder = "runs/look_back" + arm.replace(",", "_")
    rewarded = look_back.get_config(f"runlocal{arm}")
    taught = look_back.get_config(f"runlocal{arm},cold")
    assert rewarded.models.policy.path == f"{folder}/taught/model"
    assert taught.data.train.path == f"{folder}/train.jsonl"
    forms = [
      config.evaluation.benchmarks.test.scores.format.name
      for config in (rewarded, taught)
    ]
    form = "answer_format" if arm == ",control" else "back_format"
    assert forms == [form, form]


def test_every_described_question_has_a_text():
  source = data.EasyVQA(split="train")
  described = tiny_model.describe(source)
  found = [*second_looks.rows(source, "solution")]
  wanted = [row for row in source.rows if row[2] in described]
  assert len(found) == len(wanted)
  assert [one["answer"] for one in found] == [row[1] for row in wanted]
