"""VLMEvalKit's wrapper, against a base class with its interface."""

import importlib
import sys
import types

import pytest

from mmrl.errors import UserError
from mmrl.strategies import Reply


class BaseModel:
  """What vlmeval.vlm.base has: a message is made parts, which are checked."""

  allowed_types = ("text", "image")

  def generate(self, message, dataset=None):
    if isinstance(message, str):
      message = [{"type": "text", "value": message}]
    assert all(part["type"] in self.allowed_types for part in message)
    return self.generate_inner(message, dataset)


class Model:
  """Notes how it was made and asked."""

  def __init__(self, path, **settings):
    self.made, self.asked = (path, settings), []

  def answers(self, conversations, names, options):
    self.asked.append((*conversations, *names, *options))
    return [Reply("a cup", 1, 2)]


@pytest.fixture
def wrapper(monkeypatch):
  """The class, whose module is forgotten afterwards."""
  for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  sys.modules["vlmeval.vlm.base"].BaseModel = BaseModel
  name = "mmrl.harnesses.vlmevalkit"
  monkeypatch.delitem(sys.modules, name, raising=False)
  module = importlib.import_module(name)
  monkeypatch.setattr(module, "AskedModel", Model)
  yield module.Mmrl
  sys.modules.pop(name)


def test_messages_are_conversations(wrapper):
  model = wrapper("run", options={"max_new_tokens": 8}, fps=2.0)
  assert model._model.made == ("run", {"batch": 1, "fps": 2.0})
  assert not model.use_custom_prompt("MMStar") and model.INTERLEAVE
  message = [
    {"type": "image", "value": "a.png"},
    {"type": "text", "value": "or"},
    {"type": "video", "value": "b.mp4", "role": "user"},
  ]
  assert model.generate(message, dataset="MMStar") == "a cup"
  assert model.generate("why?") == "a cup"
  (turns, name, options), (others, other, _) = model._model.asked
  assert turns == [
    {
      "role": "user",
      "content": [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "or"},
        {"type": "video", "video": "b.mp4"},
      ],
    }
  ]
  assert options == {"temperature": 0.0, "length": 8}
  assert others[0]["content"] == [{"type": "text", "text": "why?"}]
  # Random numbers of sampling are of the name.
  assert name != other


def test_the_system_speaks_first(wrapper):
  model = wrapper("run", system_prompt="Be short.")
  said = {"type": "text", "value": "Look.", "role": "system"}
  model.generate([{"type": "text", "value": "why?"}, said])
  (turns, _, _) = model._model.asked[0]
  assert [turn["role"] for turn in turns] == ["system", "user"]
  assert turns[0]["content"] == "Be short.\nLook."
  assert turns[1]["content"] == [{"type": "text", "text": "why?"}]


@pytest.mark.parametrize(
  ("part", "message"),
  [
    ({"type": "audio", "value": "a.wav"}, "image or video, found 'audio'"),
    ({"type": "text"}, "type, value and role, found no value"),
    ({"type": "image", "value": "a", "min_pixels": 4}, "found min_pixels"),
    ({"type": "text", "value": "a", "role": "assistant"}, "of 'assistant'"),
    ({"type": "image", "value": "a", "role": "system"}, "found image of 'sys"),
  ],
)
def test_other_parts_are_refused(wrapper, part, message):
  with pytest.raises(UserError, match=message) as error:
    wrapper("run").generate_inner([part])
  assert "\n" not in str(error.value)


def test_other_options_are_refused(wrapper):
  with pytest.raises(UserError, match="found 'max_tokens'; the nearest is max"):
    wrapper("run", options={"max_tokens": 8})
