"""Rows that people bring: each is used whole, or refused by file and line."""

import base64
import io
import json
import random
import re

from PIL import Image
import pytest

from mmrl import build, data
from mmrl.data import sources
from mmrl.errors import UserError

TEXT = {"type": "text", "text": "what?"}


def encoded(form="PNG"):
  file = io.BytesIO()
  Image.new("RGB", (4, 3), (9, 99, 9)).save(file, form)
  return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rows")
  for name in "abc":
    Image.new("RGB", (4, 3)).save(folder / f"{name}.png")
  (folder / "v.mp4").touch()
  (folder / "sub").mkdir()
  return folder


@pytest.fixture
def read(folder):
  """Reads rows: objects, or lines as they are."""

  def read(*rows, prompt="{question}"):
    path = folder / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return list(data.Files(str(path), format="mmrl", prompt=prompt))

  return read


@pytest.fixture
def refused(read):
  """Tells what is said of a row, after its file and number."""

  def refused(row):
    with pytest.raises(UserError) as error:
      read({"question": "q", "answer": "a"}, row)
    text = str(error.value)
    assert "\n" not in text and text.isprintable() and len(text) < 500
    where, _, said = text.partition(": expected ")
    assert where.endswith("data.jsonl:2")
    return said

  return refused


def question(**changes):
  return {"question": "what?", "answer": "a"} | changes


def turn(content, role="user"):
  return {"role": role, "content": content}


def talk(*messages, **changes):
  return {"messages": list(messages), "answer": "a"} | changes


def shown(example, folder):
  """The parts of the last message in short."""
  content = example.messages[-1]["content"]
  found = []
  for part in content if isinstance(content, list) else [content]:
    if not isinstance(part, str):
      part = part[part["type"]]
    short = part if isinstance(part, bytes) else part.replace(f"{folder}/", "")
    found.append(short)
  return found


def test_a_list_of_answers_means_any_of_them(read):
  one, several, learned = read(
    {"question": "q", "answer": 3},
    {"question": "q", "answer": ["red", 3, "crimson"]},
    {"question": "q", "answers": ["a text"]},
  )
  assert one.right == ("3",) and one.also == ()
  assert several.answer == "red" and several.right == ("red", "3", "crimson")
  assert learned.answer is None and learned.right == ()


@pytest.mark.parametrize(
  ("row", "expected"),
  [
    (question(images=["a.png", "b.png"]), ["a.png", "b.png", "what?"]),
    (
      question(
        question="<image>\nis <image> <video>?", images=["b.png", "a.png"]
      )
      | {"videos": ["v.mp4"]},
      ["b.png", "\nis ", "a.png", " ", "v.mp4", "?"],
    ),
    (
      talk(turn("<image>what<image>"), images=["a.png", "b.png"]),
      ["a.png", "what", "b.png"],
    ),
    (
      talk(turn([{"type": "image"}, TEXT]), images=["a.png"]),
      ["a.png", "what?"],
    ),
    (
      talk(
        turn([{"type": "image", "path": "c.png"}, {"type": "image"}, TEXT]),
        images=["a.png"],
      ),
      ["c.png", "a.png", "what?"],
    ),
    (
      talk(turn("<image>?"), turn("no", "assistant"), turn("<image>!"))
      | {"images": ["a.png", "b.png"]},
      ["b.png", "!"],
    ),
    (question(images=[{"bytes": None, "path": "a.png"}]), ["a.png", "what?"]),
    (
      question(images=[{"bytes": encoded(), "path": "elsewhere.png"}]),
      [base64.b64decode(encoded()), "what?"],
    ),
    (
      question(images=["data:image/jpeg;base64," + encoded("JPEG")]),
      [base64.b64decode(encoded("JPEG")), "what?"],
    ),
    (
      talk(turn([{"type": "image", "image": {"path": "a.png"}}, TEXT])),
      ["a.png", "what?"],
    ),
    (
      talk(turn([{"type": "image", "url": "a.png", "text": None}, TEXT])),
      ["a.png", "what?"],
    ),
  ],
)
def test_pictures_stand_where_their_marks_are(read, folder, row, expected):
  (example,) = read(row)
  assert shown(example, folder) == expected


def test_a_path_on_this_machine_may_be_whole(read, folder):
  for path in (f"file://{folder}/a.png", f"{folder}/a.png"):
    assert shown(read(question(images=[path]))[0], folder) == ["a.png", "what?"]


def test_marks_are_those_of_the_whole_prompt(read, folder):
  row = question(question="<image>?", images=["a.png"])
  (example,) = read(row, prompt="Say: {question}")
  assert shown(example, folder) == ["Say: ", "a.png", "?"]
  assert example.question == "<image>?"


def test_a_video_has_its_rate(read, folder):
  frames = {"video": ["a.png", "b.png"], "fps": 2}
  one, two = read(
    question(videos=[frames]), question(videos=[{"path": "v.mp4", "fps": 0.5}])
  )
  part = one.messages[0]["content"][0]
  paths = [str(folder / name) for name in ("a.png", "b.png")]
  assert part == {"type": "video", "video": paths, "fps": 2}
  assert two.messages[0]["content"][0]["fps"] == 0.5


def test_null_is_absent_and_whole_numbers_are_texts(read):
  nulls = dict.fromkeys(
    ("images", "videos", "messages", "region", "kind", "answers", "extra")
  )
  one, two = read(question(**nulls), question(answer=3, kind=-1))
  assert (one.kind, one.answers, one.answer) == ("all", (), "a")
  assert (two.kind, two.answer) == ("-1", "3")


@pytest.mark.parametrize(
  ("key", "near"),
  [
    ("image", "images"),
    ("imagse", "images"),
    ("image_path", "images"),
    ("Picture", "images"),
    ("video", "videos"),
    ("solution", "answer"),
    ("conversations", "messages"),
    ("bbox", "region"),
    ("id", None),
  ],
)
def test_keys_that_nothing_reads(refused, key, near):
  said = refused(question(**{key: "a.png"}))
  assert said.startswith("a row with no other keys than question, messages")
  assert f"found {key!r}" in said
  assert f"is it {near!r}?" in said if near else "is it" not in said


@pytest.mark.parametrize(
  "part",
  [
    {"type": "video", "video": "v.mp4", "nframes": 4},
    {"type": "image", "image": "a.png", "max_pixels": 4},
    {"type": "image", "image": "a.png", "fps": 4},
    {"type": "image", "resized_height": 4},
    {"type": "text", "text": "a", "cache_control": 4},
  ],
)
def test_keys_of_parts_that_nothing_obeys(refused, part):
  said = refused(talk(turn([part, TEXT]), images=["a.png"]))
  assert f"found {[*part][-1]!r}" in said


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"answer": True}, "'answer' as text .*, found True"),
    ({"answer": 0.5}, "'answer' as text .*, found 0.5"),
    ({"answer": " "}, "'answer' as text .*, found ' '"),
    ({"answer": None}, "an object with 'answer'"),
    ({"answer": []}, "'answer' as a text or a list .*, found an empty list"),
    ({"answer": ["a", 0.5]}, "'answer' as text .*, found 0.5"),
    ({"answer": ["a", ["b"]]}, "one 'answer', found a list"),
    ({"answers": ["a", None]}, "'answers' as a list of texts"),
    ({"kind": [1]}, "one 'kind', found a list"),
    ({"kind": 1.0}, "'kind' as text"),
    ({"question": 3}, "'question' as text that isn't empty, found 3"),
    ({"question": ""}, "'question' as text that isn't empty"),
    ({"question": None}, "either 'question' or 'messages'"),
    ({"images": "a.png"}, "'images' as a list of paths, found 'a.png'"),
    ({"images": {"path": "a.png"}}, "'images' as a list"),
    ({"images": [None]}, "a picture as a path, found None"),
    ({"images": [3]}, "a picture as a path, found 3"),
    ({"images": [""]}, "a picture as a path, found ''"),
    ({"images": [["a.png"]]}, "a picture as a path, found .*a.png"),
    ({"images": ["sub"]}, "a picture at .*sub, found a folder"),
    ({"images": ["x" * 900]}, "a picture at .*, found no file"),
    ({"images": ["https://e.org/a.png"]}, "a picture on this machine, found"),
    ({"images": [encoded()]}, "a picture as a path, found bare base64"),
    ({"images": ["/9j/" + "A" * 9000]}, "a picture as a path, found bare"),
    ({"images": ["data:image/png;base64,AAAA"]}, "the base64 of a picture's"),
    ({"images": ["data:image/png;base64,?" + "A" * 999]}, "the base64"),
    ({"images": ["data:image/png,AAAA"]}, "a picture as data:image/png;base64"),
    ({"videos": ["data:video/mp4;base64,AA"]}, "a video as a file"),
    ({"images": [{"bytes": "\x89PNG"}]}, "text without control characters"),
    ({"images": [{"bytes": "PNG"}]}, "the base64 of a picture's file"),
    ({"images": [{"bytes": 3}]}, "the base64 of a picture's file"),
    (
      {"images": [{}]},
      "a picture in one of image, path, url, bytes, found non",
    ),
    ({"images": [{"image": "a.png", "url": "b"}]}, "a picture in one of"),
    (
      {"images": [{"type": "video", "image": "a.png"}]},
      "a picture, found type",
    ),
    ({"videos": [["a.png"]]}, "frames and how many of them make a second"),
    ({"videos": [{"video": [], "fps": 1}]}, "frames and how many"),
    ({"videos": [{"video": "v.mp4", "fps": 0}]}, "'fps' as a number above 0"),
    ({"videos": [{"video": "v.mp4", "fps": "2"}]}, "'fps' as a number above 0"),
    ({"region": [0, 0, 1, 1]}, "'region' beside a picture .* no picture"),
    ({"region": [0, 0, 1, True], "images": ["a.png"]}, "'region' as four"),
    ({"region": [2, 0, 1, 1], "images": ["a.png"]}, "'region' as x0, y0"),
    ({"region": "0 0 1 1", "images": ["a.png"]}, "'region' as four numbers"),
    ({"focus_area": [[3, 2]], "images": ["a.png"]}, "ranges of visual tok"),
    ({"focus_area": [], "images": ["a.png"]}, "ranges of visual tokens"),
    ({"focus_area": [[0, 1]]}, "'region' beside a picture .* no picture"),
    ({"region": [0, 0, 1, 0.5], "images": ["a.png"]}, "'region' in pixels, fo"),
    ({"region": [[0, 0, 2, 2], 3], "images": ["a.png"]}, "'region' as four"),
    ({"region": {"boxes": [[0, 0, 1, 1]]}, "images": ["a.png"]}, "a region as"),
    ({"question": "<image>?"}, "as many marks <image> .* found 1 and 0"),
    (
      {"question": "<image>?", "images": ["a.png"] * 2},
      "as many marks <image>",
    ),
    ({"question": "<image>?", "videos": ["v.mp4"]}, "as many marks <image>"),
    ({"messages": [turn("q")]}, "either 'question' or 'messages'"),
  ],
)
def test_fields_of_other_types(refused, changes, message):
  assert re.match(message, refused(question(**changes)))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (talk(turn("q"), turn("a", "assistant")), "the user's message at the end"),
    (talk(turn("q", "system")), "the user's message at the end"),
    (talk(turn("q", "human")), "a role of system, user, assistant"),
    (talk(turn("q", ["user"])), "a role of system, user, assistant"),
    (talk(turn("q", "tool"), turn("q")), "a role of system, user, assistant"),
    (talk({"from": "human", "value": "q"}), "messages with 'role' and"),
    (talk(turn("q") | {"name": "Ann"}), "a message with no other keys"),
    (talk("q"), "messages with 'role' and 'content'"),
    (talk(turn([])), "'content' as text or a list of parts"),
    (talk(turn({"text": "q"})), "'content' as text or a list of parts"),
    (talk(turn(" ")), "a question in the last message"),
    (talk(turn([{"type": "text", "text": " "}])), "a question in the last"),
    (talk(turn([{"type": "text"}])), "the text of a part"),
    (talk(turn(["q"])), "message parts of type"),
    (talk(turn([{"image": "a.png"}])), "message parts of type"),
    (talk(turn([{"type": ["image"]}])), "message parts of type"),
    (talk(turn([{"type": "image_url", "image_url": "a"}])), "message parts of"),
    (talk(turn([{"type": "image"}, TEXT])), "as many marks <image>"),
    (talk(turn("q"), images=["a.png"]), "as many marks <image> .* 0 and 1"),
    (talk(turn("<video>q"), images=["a.png"]), "as many marks <image>"),
    (talk(turn("q"), videos=["v.mp4"]), "as many marks <video>"),
    ({"messages": {}, "answer": "a"}, "at least one message in a list"),
    ({"messages": "q", "answer": "a"}, "at least one message in a list"),
    (
      talk(
        turn([{"type": "image", "image": "a.png", "region": [0, 0, 1, 1]}]),
        region=[0, 0, 1, 1],
      ),
      "'region' beside a picture without one, found one of its own",
    ),
  ],
)
def test_messages_of_other_forms(refused, row, message):
  assert re.match(message, refused(row))


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (r'{"question": "\ud83d", "answer": "a"}', "whole characters, found half"),
    (r'{"question": "a", "\udc00": "a"}', "whole characters"),
    (r'{"question": "\frac{1}{2}", "answer": "a"}', r"text without control"),
    (r'{"question": "\beta", "answer": "a"}', "text without control"),
    (r'{"question": "\u0000", "answer": "a"}', "text without control"),
    ('{"question": "\x85", "answer": "a"}', "text without control"),
    ('{"question": "a\tb", "answer": "a"}', "a line of JSON, found"),
    ('{"question": "a", "answer": NaN}', "numbers, found NaN"),
    ('{"question": "a", "answer": -Infinity}', "numbers, found -Infinity"),
    ('{"question": "a", "answer": 1e999}', "'answer' as text"),
    ('{"question": "a", "answer": ' + "9" * 5000 + "}", "a line of JSON"),
    ('{"question": "a", "answer": "a", "answer": "b"}', "each key once"),
    ('{"question": "a", "answer": ' + "[" * 9**5, "a row, found lists"),
    ('{"answer": ' + "[" * 500 + "]" * 500 + "}", "(either|a row)"),
    ('{"question": "a"', "a line of JSON"),
    ("null", "an object of format 'mmrl', found None"),
    ("\ufeff{}", "a line of JSON"),
  ],
)
def test_lines_that_are_no_rows(refused, line, message):
  assert re.match(message, refused(line))


def test_texts_that_only_look_suspect_are_used(read):
  (example,) = read(
    r'{"question": "\\beta \\u \u00e9\n\t \ud83d\ude00 é", '
    '"answer": "ü"}'
  )
  assert example.question == "\\beta \\u é\n\t \U0001f600 é"


def write(folder, content: bytes):
  path = folder / "file.jsonl"
  path.write_bytes(content)
  return str(path)


ROW = b'{"question": "q", "answer": "a"}'


@pytest.mark.parametrize(
  "content",
  [
    b"\xef\xbb\xbf" + ROW + b"\n" + ROW,
    ROW + b"\r\n\r\n" + ROW + b"\r\n",
    b"\n" + ROW + b"\n  \n" + ROW,
  ],
)
def test_files_of_other_systems(folder, content):
  source = data.Files(write(folder, content), format="mmrl")
  assert [example.answer for example in source] == ["a", "a"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "expected at least one question in .*file.jsonl, found none"),
    (b"\xef\xbb\xbf\n \n", "expected at least one question"),
    (b'\n{\n "question": 3\n}', "each line .*, found one over several lines"),
    (ROW + b"\n\xff", "file.jsonl:2: expected a readable data file in UTF-8"),
    (ROW.decode().encode("utf-16"), "file.jsonl:1: .* in UTF-8, found byte"),
  ],
)
def test_files_of_other_forms(folder, content, message):
  with pytest.raises(UserError, match=message) as error:
    data.Files(write(folder, content), format="mmrl")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", "a\0b"])
def test_paths_that_are_no_files(folder, name):
  with pytest.raises(UserError, match="expected a readable data file at"):
    data.Files(path=str(folder / name))


def test_all_rows_are_checked_and_mistakes_grouped(read):
  rows = [question() for _ in range(60)]
  for number in range(5, 45):
    rows[number - 1] = question(images=[f"{number}.png"])
  rows[49] = rows[51] = question(image="a.png")
  with pytest.raises(UserError) as error:
    read(*rows)
  first, second = str(error.value).split(" (and on 39 more lines: ")
  assert "data.jsonl:5: expected a picture at" in first
  listed, _, rest = second.partition("); ")
  assert listed == ", ".join(map(str, range(6, 26))) + ", .."
  assert "data.jsonl:50: expected a row with no other keys" in rest
  assert rest.endswith("(and on 1 more line: 52)")


def test_many_kinds_of_mistakes_are_counted(read):
  wrong = [{"answer": "a", "question": 3}, {"answer": "a"}, [], question(a=1)]
  wrong += [question(kind=True), question(images=3), question(region=3)]
  with pytest.raises(UserError, match="; 2 lines have other mistakes$"):
    read(*wrong)


@pytest.mark.parametrize(
  "name", ["Example", "Samples", "Trajectories", "batches"]
)
def test_only_sources_are_data(name):
  with pytest.raises(
    UserError, match=f"no {name!r}; valid names: C.*, EasyVQA, F"
  ):
    build.construct(sources, {"name": name}, "config.data.train")


def test_any_object_is_used_or_refused(folder):
  """Rows made of what rows are made of, in places of all kinds."""
  draw = random.Random(0)
  keys = ["question", "messages", "images", "videos", "answer", "answers"]
  keys += ["kind", "region", "role", "content", "type", "text", "image"]
  keys += ["video", "path", "url", "bytes", "fps", "x"]
  values = [None, True, 0, -3, 2.5, 10**400, "", "a", "user", "assistant"]
  values += ["image", "video", "text", "a.png", "v.mp4", "<image> <video>?"]
  values += ["\ud800", "\0", "data:image/png;base64,", encoded(), "gs:/", "://"]
  values += ["data:image/png;base64," + encoded(), "file://", "é" * 9]

  def value(depth):
    form = draw.random()
    if depth == 0 or form < 0.4:
      return draw.choice(values)
    if form < 0.6:
      return [value(depth - 1) for _ in range(draw.randrange(4))]
    if form < 0.8:
      return {
        draw.choice(keys): value(depth - 1) for _ in range(draw.randrange(5))
      }
    kind = draw.choice(["image", "video", "text"])
    part = {"type": kind, kind: value(depth - 1)}
    return draw.choice([part, [turn([part, TEXT])], [turn("<image>?")]])

  used = 0
  for _ in range(1000):
    row = {"question": "q", "answer": "a"}
    for _ in range(draw.randrange(4)):
      row[draw.choice(keys[:8])] = value(3)
    if draw.random() < 0.5:
      del row["question"]
    path = write(folder, json.dumps(row).encode())
    try:
      (example,) = data.Files(path, format="mmrl")
    except UserError as error:
      assert "\n" not in str(error)
    else:
      used += 1
      assert example.messages[-1]["role"] == "user" and example.answer.strip()
  assert 50 < used < 800


def test_other_pictures_take_the_place_of_a_row_s_own(read, folder):
  rows = (
    question(images=["a.png"], rejected_images=["b.png"], answers=["x", "y"]),
    {
      "messages": [turn("<image> and <image>?")],
      "images": ["a.png", "b.png"],
      "rejected_images": ["b.png", "c.png"],
      "answers": ["x", "y"],
    },
    question(images=["a.png"], answers=["x", "y"]),
  )
  one, two, three = (example.twin() for example in read(*rows))
  assert shown(one, folder) == ["b.png", one.question]
  assert shown(two, folder) == ["b.png", " and ", "c.png", "?"]
  assert one.answers == two.answers == ("x",)
  # Without other pictures a twin has nothing to learn.
  assert shown(three, folder) == ["a.png", three.question]
  assert three.answers == ()
  first = read(*rows)[0]
  assert shown(first, folder) == ["a.png", first.question]
  assert first.answers == ("x", "y")


@pytest.mark.parametrize(
  "changes, found",
  [
    ({"images": ["a.png"], "rejected_images": []}, "0 and 1"),
    ({"images": ["a.png"], "rejected_images": ["b.png", "c.png"]}, "2 and 1"),
    ({"rejected_images": ["b.png"]}, "1 and 0"),
    ({"rejected_images": []}, "0 and 0"),
  ],
)
def test_other_pictures_are_as_many(refused, changes, found):
  assert refused(question(**changes)) == (
    f"'rejected_images' with one for each of 'images', found {found}; leave the"
    " key out where there is none"
  )
