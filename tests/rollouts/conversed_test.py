"""The source in which the policy's questions are replied to."""

import jax
import numpy as np
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.rollouts.turns.conversed import asked, tagged
from mmrl.rollouts.turns.environments import scene_eye
from mmrl.train import collect, loop
from mmrl.train import run as run_lib

REPLY = "<answer>red</answer>"


def make_config(folder, **options):
  """The tiny model's thoughts are questions, to which a file replies."""
  file = folder / "replies.py"
  file.write_text("def reply(example, asked):\n  return 'red'\n")
  config = config_lib.get_config()
  sizes = {name: config.rollout[name] for name in config_lib.ROLLOUT_SIZES}
  config.rollout = sizes | {
    "name": "conversed",
    "environment": {"name": f"{file}:reply"},
    "replies": 2,
    "ask": "think",
    "told": "answer",
    **options,
  }
  config.rollout.prompts, config.rollout.answers = 4, 2
  config.rollout.length = 40
  config.train.minibatches = 1
  config.shares.every = 0
  config.evaluation.benchmarks = {}
  config.models.policy.remat = False
  config.token_weights.own = {"name": "own_tokens"}
  return config


@pytest.mark.full
def test_a_policy_is_replied_to(tmp_path):
  run = run_lib.build_run(make_config(tmp_path), jax.devices()[:1])
  state = run.initial_state()
  questions = loop.read_questions(run)
  with collect.concurrent.futures.ThreadPoolExecutor() as pool:
    batch, values = collect.collect(
      run, state, next(questions), 1, pool, lambda: pytest.fail("asked again")
    )
  questions.close()
  marks = np.asarray(batch.fields["environment"]).reshape(8, -1)
  tokens = np.asarray(batch.tokens).reshape(8, -1)
  mask = np.asarray(batch.mask).reshape(8, -1)
  weights = np.asarray(batch.fields["token_weights"]).reshape(8, -1)
  assert marks.any(1).sum() >= 6 and not (marks & ~mask).any()
  np.testing.assert_array_equal(weights > 0, mask & ~marks)
  ids = run.processor.tokenizer.encode(REPLY, add_special_tokens=False)
  replies = 0
  for row, marked, counted in zip(tokens, marks, mask, strict=True):
    texts = run.processor.decode(row[None], counted[None])[0]
    assert texts.count(f"</think>{REPLY}") * len(ids) == marked.sum()
    replies += texts.count(f"</think>{REPLY}")
  assert values["rollout/replies"] == pytest.approx(replies / 8)
  # What is forced is scored as what is drawn.
  assert values["rollout/sampler_scorer_gap"] < 1e-3


@pytest.mark.parametrize(
  ("pieces", "wanted"),
  [
    (["<look>", "star", "</look>", "x"], ("star", 3, "")),
    (["a<lo", "ok>s", "</look", ">b", "c"], ("s", 4, "b")),
    (["<look>", "star", "</look", "><", "seen"], ("star", 4, "<")),
    (["<look>", "</look>", "<look>", "a", "</look>"], ("", 2, "")),
    (["<look>", "star"], None),
    (["</look>", "<look>"], None),
    ([], None),
  ],
)
def test_what_is_asked(pieces, wanted):
  assert asked(pieces, "look") == wanted


@pytest.mark.parametrize(
  ("written", "wanted"),
  [
    ("", "<seen>red</seen>"),
    ("<", "seen>red</seen>"),
    ("\n", "<seen>red</seen>"),
  ],
)
def test_a_token_that_ends_a_tag_may_begin_the_reply(written, wanted):
  assert tagged("red", "seen", written) == wanted


def test_the_eye_of_scenes():
  from mmrl import data

  example = data.Scenes(split="train", count=1, kinds=["read_two"])[0]
  colours = example.answer.split(" and ")
  shapes = example.extra["question"].about
  assert [scene_eye(example, shape) for shape in shapes] == colours
  assert scene_eye(example, f"What colour is the {shapes[0]}?") == colours[0]
  assert scene_eye(example, "why?") == "I can't tell."


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"ask": "a b"}, "ask and told as two names of letters"),
    ({"told": "think"}, "ask and told as two names of letters"),
    ({"replies": 0}, "replies of at least 1"),
    ({"temperature": 0.0}, "temperature above 0"),
    ({"environment": {"name": "ear"}}, "no 'ear'; valid names: scene_eye"),
    ({"environment": {"name": "scene_eye", "x": 1}}, "no option x"),
  ],
)
def test_options_are_checked(options, message, tmp_path):
  with pytest.raises(UserError, match=f"config.rollout.*{message}"):
    run_lib.build_run(make_config(tmp_path, **options), jax.devices()[:1])
