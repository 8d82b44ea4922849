"""Sources of questions, and the box of an object."""

import json

import numpy as np
from PIL import Image
import pytest

from mmrl import data
from mmrl.data import sources
from mmrl.errors import UserError


@pytest.mark.parametrize(
  ("split", "questions", "pictures"),
  [("train", 38575, 4000), ("test", 9673, 1000)],
)
def test_easy_vqa_is_the_published_set(split, questions, pictures):
  source = data.EasyVQA(split=split)
  assert len(source) == questions
  assert len({row[2] for row in source.rows}) == pictures
  assert len({answer for _, answer in source.pairs()}) == 13
  first = source[0]
  assert first.picture["image"].shape == (64, 64, 3)
  assert first.messages[0]["content"][1]["text"] == first.question


def test_prompt_wraps_the_question():
  source = data.EasyVQA(split="test", prompt="Q: {question} A:")
  text = source[3].messages[0]["content"][1]["text"]
  assert text == f"Q: {source[3].question} A:"


def test_unknown_split():
  with pytest.raises(UserError, match="'train' or 'test', found 'val'"):
    data.EasyVQA(split="val")


def test_object_box_by_hand():
  pixels = np.full((8, 10, 3), 200, np.uint8)
  pixels[2:5, 3:7, 1] = 100
  assert sources.object_box(pixels) == (3, 2, 7, 5)
  pixels[:] = 200
  assert sources.object_box(pixels) == (0, 0, 10, 8)


def test_object_box_is_tight_on_real_pictures():
  """Nothing but ground outside the box, and object along each side."""
  source = data.EasyVQA(split="test")
  for index in range(0, 400, 40):
    part = source[index].picture
    x0, y0, x1, y1 = part["region"]
    pixels = part["image"].astype(int)
    differs = (np.abs(pixels - pixels[0, 0]) > 10).any(-1)
    inside = differs[y0:y1, x0:x1]
    assert differs.sum() == inside.sum()
    assert inside[0].any() and inside[-1].any()
    assert inside[:, 0].any() and inside[:, -1].any()


@pytest.fixture
def folder(tmp_path):
  Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.png")
  return tmp_path


def write(folder, *lines):
  path = folder / "data.jsonl"
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def test_json_lines_question_and_messages(folder):
  one = {"question": "what?", "answer": 3, "images": ["a.png"]}
  one |= {"region": [1, 2, 3, 4], "kind": "count"}
  asked = [{"type": "image", "image": "a.png"}]
  asked.append({"type": "text", "text": "and now?"})
  system = {"role": "system", "content": "be brief"}
  messages = [system, {"role": "user", "content": asked}]
  two = {"messages": messages, "answer": "yes"}
  path = write(folder, json.dumps(one), "", json.dumps(two))
  source = data.Files(path=path, prompt="Say: {question}")
  assert len(source) == 2
  first, second = source[0], source[1]
  assert first.answer == "3" and first.kind == "count"
  assert first.picture["region"] == (1, 2, 3, 4)
  assert first.messages[0]["content"][1]["text"] == "Say: what?"
  assert second.question == "and now?"
  assert second.picture["image"].endswith("a.png")
  assert list(source.pairs()) == [("what?", "3"), ("and now?", "yes")]


def test_json_lines_videos(folder):
  """Files, with a rate or without, and frames that were taken before."""
  (folder / "b.mp4").touch()
  frames = {"type": "video", "video": ["a.png", "a.png"], "fps": 2}
  file = {"type": "video", "path": "b.mp4", "fps": 0.5}
  text = {"type": "text", "text": "which?"}
  one = {"question": "what?", "answer": "yes"}
  one |= {"images": ["a.png"], "videos": ["b.mp4"]}
  messages = [{"role": "user", "content": [frames, file, text]}]
  two = {"messages": messages, "answer": "no"}
  path = write(folder, json.dumps(one), json.dumps(two))
  first, second = data.Files(path=path)
  picture, video = str(folder / "a.png"), str(folder / "b.mp4")
  assert first.messages[0]["content"] == [
    {"type": "image", "image": picture},
    {"type": "video", "video": video},
    {"type": "text", "text": "what?"},
  ]
  assert second.messages[0]["content"] == [
    {"type": "video", "video": [picture, picture], "fps": 2},
    {"type": "video", "video": video, "fps": 0.5},
    text,
  ]
  assert second.picture is None
  assert second.question == "which?"


def row(**changes):
  return json.dumps({"question": "a", "answer": "a"} | changes)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{nope", "a line of JSON"),
    ("[1]", "an object of format 'mmrl'"),
    ('{"question": "a"}', "an object with 'answer'"),
    ('{"answer": "a"}', "either 'question'"),
    (row(messages=[]), "either 'question'"),
    (row(images=["b.png"]), "a picture at .*b.png, found no file"),
    (row(videos=["b.mp4"]), "a video at .*b.mp4, found no file"),
    (row(videos=[["a.png", "c.png"]]), "a frame at .*c.png, found no file"),
    (
      '{"messages": ["hello"], "answer": "a"}',
      "messages with 'role' and 'content'",
    ),
    ('{"messages": [], "answer": "a"}', "at least one message"),
    (row(images=["a.png"], region=[1]), "'region' as four numbers"),
  ],
)
def test_json_lines_names_file_and_line(folder, line, message):
  path = write(folder, '{"question": "a", "answer": "b"}', line)
  with pytest.raises(UserError, match=f"data.jsonl:2: expected {message}"):
    data.Files(path=path)


def test_json_lines_empty_and_missing(folder):
  with pytest.raises(UserError, match="at least one question"):
    data.Files(path=write(folder, ""))
  with pytest.raises(UserError, match="readable data file"):
    data.Files(path=str(folder / "none.jsonl"))


@pytest.mark.parametrize("prompt", ["", "Answer in one word.", "{Question}"])
def test_a_prompt_without_the_question_is_refused(prompt, tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"question": "?", "answer": "a"}\n')
  for make in (
    lambda: sources.EasyVQA(split="train", prompt=prompt),
    lambda: sources.Files(path=str(path), prompt=prompt),
  ):
    with pytest.raises(UserError, match="prompt: expected a text with"):
      make()
