"""Rows of other projects: each the same as the same content in our own form."""

import base64
import functools
import io
import json
import pathlib
import random
import re

from PIL import Image
import pytest

from mmrl import data
from mmrl.data import formats
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.prompts.processor import Processor

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = ROOT / "testdata" / "formats"
DOCS = ROOT.parent / "docs" / "data.md"
OTHERS = formats.FORMATS[1:]
_MARK = re.compile("<(image|video)>")


def picture(colour: int = 0) -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (4, 3), (colour, 99, 9)).save(file, "PNG")
  return file.getvalue()


@functools.cache
def base(colour: int = 0) -> str:
  return base64.b64encode(picture(colour)).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("formats")
  for i, name in enumerate("abc"):
    (folder / f"{name}.png").write_bytes(picture(i))
  (folder / "v.mp4").touch()
  # As SEED-Bench-R1 lays them out.
  for kind, names in (
    ("images", ("a.png", "b.png", "c.png")),
    ("videos", ("v.mp4",)),
  ):
    (folder / kind / "s").mkdir(parents=True)
    for name in names:
      (folder / kind / "s" / name).write_bytes((folder / name).read_bytes())
  return folder


def write(path, rows):
  """Writes rows as the ending of a path says."""
  if path.suffix == ".json":
    path.write_text(json.dumps(rows))
  elif path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif path.suffix == ".parquet":
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({key: [row.get(key) for row in rows] for key in keys})
    parquet.write_table(table, path, row_group_size=70)
  else:
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names] + [[str(row.get(n, "")) for n in names] for row in rows]
    quoted = [
      ['"' + f.replace('"', '""') + '"' for f in fields] for fields in lines
    ]
    path.write_text("".join("\t".join(f) + "\n" for f in quoted), "utf-8")
  return str(path)


def bare(example):
  """An example without its name, which its partner and its pair have, too."""
  extra = {k: v for k, v in example.extra.items() if k != "pair"}
  found = {**vars(example), "name": "", "extra": extra}
  if example.partner:
    found["partner"] = bare(example.partner)
  return found


def same(found, expected):
  assert [bare(e) for e in found] == [bare(e) for e in expected]


# Fixtures: a file per format, beside it the same content in our own.

CASES = sorted(
  path for path in FIXTURES.iterdir() if not path.stem.endswith("_ours")
)


@pytest.mark.parametrize("path", CASES, ids=[path.name for path in CASES])
def test_fixtures_equal_their_own_form(path, folder, capsys):
  ours = FIXTURES / f"{path.stem}_ours.jsonl"
  form = path.stem.partition("-")[0]
  media = str(folder)
  found = data.Files(str(path), format=form, media=media)
  same(found, data.Files(str(ours), format="mmrl", media=media))
  if path.stem.endswith("-any"):  # Several formats can have such rows.
    with pytest.raises(UserError, match="one format alone can have, found"):
      data.Files(str(path), media=media)
  else:
    capsys.readouterr()
    same(data.Files(str(path), media=media), found)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{path}: {len(found):,} rows, read as {form}"


@pytest.mark.parametrize("form", formats.FORMATS)
def test_every_format_has_fixtures(form):
  assert [path for path in CASES if path.stem.partition("-")[0] == form]


# Rows of each format that say the same, with chosen pictures and answers.


def turns(*texts, keys=("from", "value"), roles=("human", "gpt")):
  pairs = zip(roles, texts, strict=False)
  return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def asked(form, text, images=(), videos=(), answer="red"):
  """A row of a format that asks a question, pictures at its marks."""
  media = {"images": list(images)} if images else {}
  media |= {"videos": list(videos)} if videos else {}
  chat = turns(text, keys=("role", "content"), roles=("user",))
  if form == "easyr1":
    return {"problem": text, "answer": answer} | media
  if form == "verl":
    reward = {"style": "rule", "ground_truth": answer}
    return {"prompt": chat, "reward_model": reward} | media
  if form == "sharegpt":
    return {"conversations": turns(text, answer)} | media
  if form == "llava":
    row = {"conversations": turns(text, answer)}
    row |= {"image": list(images)} if images else {}
    return row | ({"video": list(videos)} if videos else {})
  if form == "trl":
    kinds, parts = _MARK.split(text), []
    for i, piece in enumerate(kinds):
      if i % 2:
        parts.append({"type": piece})
      elif piece:
        parts.append({"type": "text", "text": piece})
    chat = [{"role": "user", "content": parts}]
    return {"prompt": chat, "solution": answer} | media
  assert form == "mmrl"
  return {"question": text, "answer": answer} | media


MARKED = ("mmrl", "trl", "easyr1", "verl", "llava", "sharegpt")


@pytest.mark.parametrize("form", MARKED)
@pytest.mark.parametrize(
  ("text", "media", "message"),
  [
    (
      "<image>what?",
      {"images": ["none.png"]},
      r"a picture at .*none.png, found no file",
    ),
    ("<image> <image>?", {"images": ["a.png"]}, "as many marks <image> in"),
    (
      "<image> what?",
      {"images": ["a.png", "b.png"]},
      "as many marks <image> in",
    ),
    ("<image> what?", {}, "as many marks <image> in"),
    ("<video> what?", {"images": ["a.png"]}, "as many marks <image> in"),
  ],
)
def test_what_is_missing(form, text, media, message, folder):
  rows = [asked(form, "<image>what?", ["a.png"]), asked(form, text, **media)]
  path = write(folder / "missing.jsonl", rows)
  with pytest.raises(UserError, match=f"missing.jsonl:2: expected {message}"):
    data.Files(path, format=form)


def test_tags_around_answers(folder):
  for form in MARKED[1:]:
    text = "<think>so</think>\n<answer> red </answer>"
    path = write(folder / "tags.jsonl", [asked(form, "what?", answer=text)])
    assert data.Files(path, format=form)[0].answer == "red"
    for wrong in ("<answer>red", "red</answer>", "<answer>r</answer></answer>"):
      path = write(folder / "tags.jsonl", [asked(form, "what?", answer=wrong)])
      with pytest.raises(UserError, match="expected <answer> and </answer>"):
        data.Files(path, format=form)


def test_several_right_answers(folder):
  for form in ("trl", "easyr1", "verl"):
    row = asked(form, "what?", answer=["red", "<answer>crimson</answer>"])
    (example,) = data.Files(write(folder / "also.json", [row]), format=form)
    assert example.right == ("red", "crimson")


@pytest.mark.parametrize("form", OTHERS)
def test_every_key_is_known_or_refused(form, folder):
  module = formats._MODULES[form]
  row = documented(form)
  near = max(module.USED, key=len)
  unused = dict.fromkeys(module.UNUSED, "x") | {"nothing": None}
  path = write(folder / "keys.jsonl", [row | unused])
  assert len(data.Files(path, format=form, media=str(folder))) == 1
  path = write(folder / "keys.jsonl", [row, row | {f"{near}x": "x", "q": 1}])
  with pytest.raises(UserError) as error:
    data.Files(path, format=form, media=str(folder))
  text = str(error.value)
  assert "keys.jsonl:2: expected a row of" in text
  assert f"found '{near}x' (is it '{near}'?), 'q'; rename" in text


@pytest.mark.parametrize("form", formats.FORMATS)
def test_docs_list_every_key(form, folder):
  module = formats._MODULES[form]
  for key in (*module.USED, *module.UNUSED):
    assert f"`{key}`" in section(form) or len(key) == 1, key
  row = documented(form)
  path = write(folder / "documented.json", [row])
  assert data.Files(path)[0] == data.Files(path, format=form)[0]


def section(form):
  """What the docs say of a format."""
  parts = DOCS.read_text("utf-8").split("\n## ")
  (found,) = [part for part in parts if part.startswith(f"`{form}`\n")]
  return found


def documented(form):
  """The docs' example of a format."""
  return json.loads(section(form).split("```json\n")[1].split("```")[0])


@pytest.mark.parametrize(
  ("form", "row", "message"),
  [
    ("verl", {"audios": ["a.wav"]}, "rows without 'audios'"),
    ("verl", {"reward_model": {"style": "x"}}, "'reward_model' with 'ground_"),
    ("verl", {"reward_model": "red"}, "'reward_model' with 'ground_"),
    (
      "verl",
      {"reward_model": {"ground_truth": "x", "stile": 1}},
      r"a 'reward_model' .*'stile' \(is it 'style'",
    ),
    ("verl", {"prompt": "what?"}, "'prompt' as a list of messages"),
    (
      "verl",
      {
        "prompt": turns("<video>", keys=("role", "content"), roles=("user",)),
        "videos": [{"video": "v.mp4", "nframes": 4}],
      },
      "a video with no other keys .*'nframes'",
    ),
    ("easyr1", {"prompt": "too"}, "one of problem, prompt, found problem and"),
    ("easyr1", {"problem": None}, "one of problem, prompt, found none"),
    ("easyr1", {"problem": 3}, "'problem' as text that isn't empty"),
    ("easyr1", {"answer": None}, "an object with 'answer'"),
    ("sharegpt", {"tools": "[{}]"}, "rows without 'tools'"),
    ("sharegpt", {"audios": ["a"]}, "rows without 'audios'"),
    ("sharegpt", {"messages": []}, "one of conversations, messages, found con"),
    ("sharegpt", {"chosen": turns("x")[0]}, "a text of the assistant at"),
    (
      "sharegpt",
      {"chosen": turns("x", roles=["gpt"])[0]},
      "messages in 'rejected' .*found None",
    ),
    (
      "sharegpt",
      {
        "system": "x",
        "conversations": turns("x", "y", "z", roles=("system", "human", "gpt")),
      },
      "one message of the system, found two",
    ),
    (
      "sharegpt",
      {"conversations": turns("x", "y", roles=("human", "observation"))},
      "a role of system, human",
    ),
    ("llava", {"conversations": []}, "'conversations' as a list of messages"),
    ("llava", {"conversations": ["x"]}, "messages in 'conversations' with"),
    (
      "llava",
      {"conversations": turns("what?")},
      "an object with 'answer'",
    ),
    ("llava", {"conversations": turns("x", " ")}, "a text of the assistant, f"),
    ("llava", {"conversations": turns("x", 3)}, "a text of the assistant at"),
    ("trl", {"prompt": "what?"}, "'prompt' as a list of messages, found text"),
    ("trl", {"answer": "red"}, "one of answer, solution, found answer and"),
    ("trl", {"chosen": turns("x")}, "'chosen' and 'rejected', found one"),
    (
      "trl",
      {"prompt": turns("<image>", keys=("role", "content"), roles=["user"])},
      "text without marks, found '<image>'",
    ),
    (
      "trl",
      {"completion": turns("x", "y", keys=("role", "content"))},
      "a role of system|one message of the assistant",
    ),
    ("trl", {"messages": [], "prompt": None}, "'messages' as a list of mess"),
    ("trl", {"prompt": None}, "one of prompt, messages, chosen, found none"),
    ("trl", {"messages": turns("x", "y")}, "'messages', or 'prompt' with"),
    ("video_r1", {"problem_type": 3}, "'problem_type' as text"),
    ("video_r1", {"options": ["A"]}, "'options' beside problem_type"),
    ("video_r1", {"problem_type": "multiple choice"}, "'options' as a list"),
    ("video_r1", {"path": "./a.png", "data_type": "audio"}, "'data_type' as"),
    ("video_r1", {"path": "./none.png", "data_type": "image"}, "a picture at"),
    ("video_r1", {"solution": 3}, "'solution' as text"),
    ("vlmevalkit", {"image": "7"}, "the base64 of a picture, or the index"),
    ("vlmevalkit", {"image": "A" * 80}, "the base64 of a picture's file"),
    ("vlmevalkit", {"image": "['a', 3]" + " " * 90}, "a list of texts, found"),
    ("vlmevalkit", {"image_path": "['a"}, "a list of texts in Python's form"),
    ("vlmevalkit", {"image_path": "none.png"}, "a picture at .*none.png"),
    ("vlmevalkit", {"question": None}, "'question' as text"),
  ],
)
def test_fields_that_are_refused(form, row, message, folder):
  if form == "video_r1":
    right = {"problem": "what?", "problem_type": "OCR", "solution": "red"}
  elif form == "vlmevalkit":
    right = {"index": "1", "question": "what?", "answer": "red"}
  else:
    right = asked(form, "what?")
  path = write(folder / "refused.json", [right, right | row])
  with pytest.raises(
    UserError, match=rf"refused.json\[1\]: expected {message}"
  ):
    data.Files(path, format=form)


# Detection.


@pytest.mark.parametrize(
  ("rows", "form"),
  [
    ([{"question": "q", "answer": "a"}], "mmrl"),
    ([{"question": "q", "image": "a.png", "focus_area": [[0, 1]]}], "sayo"),
    ([{"answer": "a"}, {"question": "q", "answer": "a"}], "mmrl"),
    ([{"conversations": turns("q", "a")}, {"image": "a.png"}], None),
    (
      [
        {"conversations": turns("q", "a")},
        {"conversations": turns("<image>", "a"), "image": "a.png"},
      ],
      "llava",
    ),
    ([{"conversations": turns("q", "a"), "system": "x"}], "sharegpt"),
    ([{"problem": "q", "answer": "a"}], "easyr1"),
    ([{"problem": "q", "problem_type": "OCR", "solution": "a"}], "video_r1"),
    ([{"prompt": "q", "answer": "a"}], "easyr1"),
    ([{"problem": "q", "solution": "a"}], None),
    ([{"x": 1}], None),
    ([asked("verl", "q")], "verl"),
    ([asked("trl", "q")], "trl"),
    ([], "mmrl"),
  ],
)
def test_detection(rows, form, tmp_path):
  if form is None:
    with pytest.raises(UserError, match="expected rows (of a known|that one)"):
      formats.detected(rows, "x")
  else:
    assert formats.detected(rows, "x") == form


# Random conversations.


def conversation(draw):
  """A conversation in our own form, its pictures and videos in order."""
  words = ["what", "is", "<red>", "é\n", "tab\t", "“it”", "3", "\\frac"]
  words += ["😀", "{}", "Options:", "A."]

  def text():
    return " ".join(draw.choices(words, k=draw.randrange(1, 9))) or "x"

  messages, images, videos = [], [], []
  for turn in range(2 * draw.randrange(3) + 1):
    said = text()
    if turn % 2 == 0:
      for _ in range(draw.randrange(3)):
        kind = draw.choice(["image", "image", "video"])
        said = (
          f"{said} <{kind}>{text()}"
          if draw.random() < 0.7
          else (f"<{kind}>\n{said}")
        )
      for mark in _MARK.findall(said):
        if mark == "image":
          images.append(f"{draw.choice('abc')}.png")
        else:
          videos.append("v.mp4")
    messages.append((("user", "assistant")[turn % 2], said))
  return messages, images, videos, text()


def written(form, messages, images, videos, answer):
  """A row of a format with the same content, if it can have it."""
  single = len(messages) == 1
  media = {"images": images, "videos": videos}
  chat = [{"role": role, "content": said} for role, said in messages]
  spoken = [
    {"from": {"user": "human", "assistant": "gpt"}[role], "value": said}
    for role, said in messages
  ]
  target = {"answer": answer, "answers": [answer]}
  ours = {"messages": chat} if not single else {"question": messages[0][1]}
  ours |= media
  if form == "verl":
    reward = {"style": "rule", "ground_truth": answer}
    row = {"prompt": chat, "reward_model": reward} | media
    return row, ours | {"answer": answer}
  if form == "sharegpt":
    said = [*spoken, {"from": "gpt", "value": answer}]
    return {"conversations": said, "system": ""} | media, ours | target
  if form == "llava":
    said = [*spoken, {"from": "gpt", "value": answer}]
    media = {"image": images, "video": videos}
    return {"conversations": said} | media, ours | target
  if form == "mmrl":
    return ours | {"answer": answer}, ours | {"answer": answer}
  if form == "trl":
    if videos:
      return None
    chat = [
      asked("trl", said)["prompt"][0] | {"role": role}
      for role, said in messages
    ]
    return (
      {"prompt": chat, "images": images, "answer": answer},
      {"messages": chat, "images": images, "answer": answer},
    )
  if not single:
    return None
  if form == "easyr1":
    row = {"problem": messages[0][1], "answer": answer} | media
    return row, ours | {"answer": answer}
  question = _MARK.sub("", messages[0][1]) or "x"
  if "image" in question or "video" in question:
    return None
  if form == "video_r1":
    (kind, paths), *others = [(k, v) for k, v in media.items() if v] or [
      ("", [])
    ]
    if others or len(paths) > 1:
      return None
    row = {"problem": question, "problem_type": "OCR", "process": question}
    row |= {"solution": f"<answer>{answer}</answer>"}
    row |= {"path": f"./{paths[0]}", "data_type": kind[:-1]} if paths else {}
    learned = f"{question}\n<answer>{answer}</answer>"
    ours = {"question": question, "kind": "OCR", "answers": [learned]}
    ours |= {kind: [f"./{paths[0]}"]} if paths else {}
    return row, ours | {"answer": answer.strip()}
  if form == "seed_bench_r1":
    letters = dict(
      zip(("a", "b", "c", "d"), ("one", "two", "3", answer), strict=True)
    )
    picture = (images or ["a.png"])[0]
    row = {f"choice_{k}": text for k, text in letters.items()}
    row |= {"question": question, "answer": answer, "golden_choice_idx": "D"}
    row |= {"video_source": "s", "current_observation_basename": picture}
    row |= {"task_progress_metadata": [], "video_basename": "v.mp4"}
    if videos:
      row["task_progress_metadata"] = [{"narration_text": "x"}]
    lines = [f"{k.upper()}. {text}" for k, text in letters.items()]
    whole = "<video>" * bool(videos) + "<image>" + "\n".join([question, *lines])
    ours = {"question": whole, "images": [f"images/s/{picture}"]}
    ours |= {"videos": ["videos/s/v.mp4"]} if videos else {}
    return row, ours | {"answer": "D"}
  if form == "sayo":
    if videos or len(images) != 1:
      return None
    row = {"question": question, "image": images[0], "type": "x", "id": "1"}
    row |= {"answer": f"It is {answer}.", "short_answer": answer}
    row |= {"focus_area": [[0, 0]]}
    ours = {"question": question, "images": images, "kind": "x"}
    ours |= {"answer": [f"It is {answer}.", answer], "focus_area": [[0, 0]]}
    return row, ours
  assert form == "vlmevalkit"
  if videos:
    return None
  shown = [base("abc".index(path[0])) for path in images]
  row = {"question": question, "answer": answer, "category": "x"}
  row |= {"image": repr(shown)} if shown else {}
  ours = {"question": question, "answer": answer, "kind": "x"}
  ours |= {"images": [{"bytes": one} for one in shown]}
  return row, ours


def round_trip(form, count, folder, endings):
  """Reads back what was written in a format, and our own form of it."""
  draw = random.Random(form)
  pairs = []
  while len(pairs) < count:
    pair = written(form, *conversation(draw))
    if pair is None:
      continue
    if form == "vlmevalkit":
      pair[0]["index"] = str(len(pairs))
    pairs.append(pair)
  ours = write(folder / f"{form}_ours.jsonl", [b for _, b in pairs])
  expected = [*data.Files(ours, format="mmrl")]
  parts = [part for example in expected for part in parts_of(example.messages)]
  said = [text for _, row in pairs for text in texts_of(row)]
  assert tokens(p["text"] for p in parts if p["type"] == "text") == tokens(said)
  listed = sum(
    len(b.get("images", ())) + len(b.get("videos", ())) for _, b in pairs
  )
  assert sum(p["type"] != "text" for p in parts) == listed > count / 4
  for ending in endings:
    theirs = write(folder / f"{form}_theirs{ending}", [a for a, _ in pairs])
    found = data.Files(theirs, format=form)
    assert len(found) == len(expected) == count
    same(found, expected)
    assert list(found.pairs()) == [(e.question, e.answer) for e in expected]
    assert len(set(found.names())) == count


def parts_of(messages):
  """Parts of messages, a plain text as one."""
  for message in messages:
    content = message["content"]
    if isinstance(content, str):
      content = [{"type": "text", "text": content}]
    yield from content


def texts_of(row):
  """Texts of a row of our own between its marks, as they were written."""
  if "question" in row:
    return pieces(row["question"])
  parts = parts_of(row["messages"])
  return [t for p in parts if "text" in p for t in pieces(p["text"])]


def pieces(text):
  return re.split("<image>|<video>", text)


@functools.cache
def processor():
  """That of the tiny model, without its weights."""
  path = pathlib.Path(str(directory.tiny_path()))
  return Processor.load(path, config_json.read(path))


def tokens(texts):
  return sum(map(len, processor().tokenizer(list(texts))["input_ids"]))


def endings(form):
  """Endings of files that can hold a format."""
  if form == "vlmevalkit":
    return [".tsv"]
  return [".jsonl", ".json", ".parquet"]


@pytest.mark.parametrize("form", formats.FORMATS)
def test_random_conversations(form, folder):
  round_trip(form, 100, folder, endings(form))


@pytest.mark.full
@pytest.mark.parametrize("form", formats.FORMATS)
def test_many_random_conversations(form, folder):
  round_trip(form, 3000, folder, endings(form))
