"""What a harness asks of a model, as conversations and options of decoding."""

import json

import pytest
import small_models

from mmrl import hub
from mmrl.errors import UserError
from mmrl.harnesses import model as harness

PICTURES = [{"type": "image", "image": name} for name in ("a.png", "b.png")]
VIDEO = {"type": "video", "video": "a.mp4"}


def text(words):
  return {"type": "text", "text": words}


@pytest.mark.parametrize(
  ("words", "shown", "wanted"),
  [
    ("what?", [], [text("what?")]),
    ("what?", PICTURES, [*PICTURES, text("what?")]),
    (
      "is <image> as <image>?",
      PICTURES,
      [text("is "), PICTURES[0], text(" as "), PICTURES[1], text("?")],
    ),
    ("<image>", PICTURES[:1], PICTURES[:1]),
    ("of <image>", PICTURES, [*PICTURES, text("of <image>")]),
    ("<image>?", [VIDEO], [VIDEO, text("<image>?")]),
  ],
)
def test_conversation_golden(words, shown, wanted):
  (turn,) = harness.conversation(words, shown)
  assert turn == {"role": "user", "content": wanted}


def test_a_system_prompt_comes_first():
  first, _ = harness.conversation("what?", [], "Be short.")
  assert first == {"role": "system", "content": "Be short."}


@pytest.mark.parametrize(
  ("options", "wanted"),
  [
    ({}, {"temperature": 0.0}),
    ({"max_new_tokens": 8, "top_p": 0.5}, {"temperature": 0.0, "length": 8}),
    ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.0}),
    ({"temperature": 0, "num_beams": 1}, {"temperature": 0.0}),
    ({"do_sample": True}, {"temperature": 1.0}),
    (
      {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
      {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
    ),
    ({"max_new_tokens": None, "temperature": None}, {"temperature": 0.0}),
  ],
)
def test_decoding_golden(options, wanted):
  assert harness.decoding(options, "task/3/0") == wanted


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_beams": 3}, "^task/3: expected num_beams 1, found 3: beams aren't"),
    ({"max_tokens": 3}, "found 'max_tokens'; the nearest is max_new_tokens"),
  ],
)
def test_decoding_refuses(options, message):
  with pytest.raises(UserError, match=message):
    harness.decoding(options, "task/3")


def test_texts_end_before_the_first_string():
  assert harness.cut("a b\n\nc d", ["\n\n", "", "x"]) == "a b"
  assert harness.cut("a b", []) == "a b"


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"max_pixel": 3}, "found 'max_pixel'; the nearest is max_pixels"),
    ({"fps": "fast"}, "^fps: expected a number, found 'fast'"),
    ({"batch": 0}, "expected a batch of at least 1 question, found 0"),
    ({"side": 28, "max_pixels": 784}, "side: expected 0 beside max_pixels"),
    ({"side": -1}, "side: expected at least 0, found -1"),
    ({"dtype": "float8"}, "dtype: expected 'float32' or 'bfloat16'"),
  ],
)
def test_settings_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    harness.AskedModel("tiny", **settings)


def test_a_run_without_a_model_is_refused(tmp_path):
  raw = {"rollout": {}, "models": {"policy": {}}}
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(UserError, match="a trained model at .*model, found none"):
    harness.AskedModel(str(tmp_path))


@pytest.mark.full
def test_answers_and_likelihoods(tmp_path):
  """Whatever is asked beside them; of a run, with its settings of pictures."""
  raw = {"rollout": {}, "models": {"policy": {"max_pixels": 2048}}}
  (tmp_path / "config.json").write_text(json.dumps(raw))
  hub.save(hub.load("tiny"), tmp_path / "model")
  asked = harness.AskedModel(str(tmp_path), batch=2)
  assert asked._model.processor.picture.max_pixels == 2048
  chats = [
    small_models.user(small_models.picture(40, 40, 1), "what color is it?"),
    small_models.user("is there a circle?"),
    small_models.user(small_models.picture(90, 40, 2), "is it red?"),
  ]
  names = ["a", "b", "c"]
  found = asked.answers(chats, names, [{"length": 6}] * 3)
  alone = [
    asked.answers([chat], [name], [{"length": 6}])[0]
    for chat, name in zip(chats, names, strict=True)
  ]
  assert found == alone and all(one.completion_tokens for one in found)
  texts = [one.text for one in found]
  own = asked.likelihoods(chats, texts, names)
  assert all(greedy for _, greedy in own)
  others = asked.likelihoods(chats, [f"no {one}" for one in texts], names)
  assert not any(greedy for _, greedy in others)
  assert all(one[0] < 0 for one in own + others)
  with pytest.raises(UserError, match="b: expected a continuation, found"):
    asked.likelihoods(chats[1:2], [""], ["b"])
