"""Rows with facts, labels and frames to compare: used, or refused by line."""

import json

from PIL import Image
import pytest

from mmrl import build, data, rewards
from mmrl.errors import UserError
from mmrl.rewards import needs

PAIR = {
  "question": "what is wrong?",
  "images": ["a.png"],
  "labels": ["extra limb"],
  "compared": {"images": ["b.png"], "labels": []},
  "preference": "B",
}
FACTS = {"question": "?", "answer": "red", "facts": ["A star.", "A star."]}
KEYS = "<info1>AB = 1.</info1> <info2>BC = 2.</info2>"
GEOMETRY = {"prompt": "?", "answer": "5", "visual_key_info": KEYS}


def files(folder, *rows):
  for name in "ab":
    Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
  path = folder / "train.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return data.Files(str(path))


def test_facts_are_read_once(tmp_path):
  most = files(tmp_path, FACTS | {"facts": [*"abcdefghijklmnopa"]})[0]
  assert most.extra["facts"] == tuple("abcdefghijklmnop")
  assert files(tmp_path, FACTS)[0].extra == {"facts": ("A star.",)}
  found = files(tmp_path, GEOMETRY)[0].extra
  assert found == {"facts": ("AB = 1.", "BC = 2.")}


def test_perception_r1_parquet(tmp_path):
  """As the published reader takes it: bytes of pictures, keys as one text."""
  pa = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "b.png"
  Image.new("RGB", (8, 8)).save(path)
  picture = {"bytes": path.read_bytes(), "path": None}
  rows = [
    {
      "prompt": "<image>Find x.",
      "images": [picture],
      "answer": "5",
      "visual_key_info": given,
    }
    for given in (KEYS, None)
  ]
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
  source = data.Files(str(tmp_path / "train.parquet"))
  assert source[0].extra == {"facts": ("AB = 1.", "BC = 2.")}
  assert source[1].extra == {}
  bound = build.bind(
    *(rewards, {"name": "stated_facts"}, "config.rewards.facts"),
    provided=("text", "example"),
  )
  with pytest.raises(
    UserError, match=r"'facts' of every question, as stated_f"
  ):
    needs.require_all([bound], source)


def test_a_pair_is_a_question_and_its_partner(tmp_path):
  example = files(tmp_path, PAIR)[0]
  twin = example.twin()
  known = {"pair": example.name, "preference": "B"}
  assert example.extra == {"labels": ("extra limb",), "side": "A", **known}
  assert twin.extra == {"labels": (), "side": "B", **known}
  assert twin.name == f"{example.name} (compared)"
  assert str(twin.picture["image"]).endswith("b.png")
  assert str(example.picture["image"]).endswith("a.png")
  group = [['<think></think><answer>{"labels": [], "score": 3}</answer>']]
  found = rewards.pair_preference(2 * group, [example, twin])
  assert found[0, 0] == pytest.approx(-1.791759, abs=1e-6)
  found = rewards.label_attribution(2 * group, [example, twin])
  assert found.ravel().tolist() == pytest.approx([-0.2, -0.2])


@pytest.mark.parametrize(
  "row, message",
  [
    (FACTS | {"facts": []}, "at least one sentence, found an empty list"),
    (FACTS | {"facts": "A star."}, "'facts' as a list of texts"),
    (FACTS | {"facts": [*"abcdefghijklmnopqa"]}, "at most 16 different 'facts"),
    (FACTS | {"facts": [" "]}, "'facts' as a list of texts"),
    (FACTS | {"fact": ["a"]}, "facts"),
    (GEOMETRY | {"visual_key_info": "AB = 1."}, "as text of <info1>"),
    (GEOMETRY | {"visual_key_info": f"{KEYS} and"}, "as text of <info1>"),
    (GEOMETRY | {"visual_key_info": KEYS[16:]}, "as text of <info1>"),
    (GEOMETRY | {"visual_key_info": ""}, "as text of <info1>"),
    (GEOMETRY | {"visual_key_info": ["a"]}, "as text of <info1>"),
    (PAIR | {"preference": "C"}, "a 'preference' of A, B or tie beside"),
    (PAIR | {"preference": None}, "a 'preference' of A, B or tie beside"),
    (
      PAIR | {"compared": {"images": ["b.png"]}},
      "the 'images' and 'labels' of",
    ),
    (PAIR | {"compared": None}, "the 'images' and 'labels' of the other"),
    (
      PAIR | {"compared": {"images": [], "labels": []}},
      "as many 'images' in 'compared' as in the row, found 0 and 1",
    ),
    (PAIR | {"labels": "extra limb"}, "'labels' as a list of texts"),
    (
      PAIR | {"compared": {"images": ["c.png"], "labels": []}},
      "c.png",
    ),
  ],
)
def test_other_values_are_refused_by_line(tmp_path, row, message):
  right = {"question": "?", "answer": "red"}
  if "prompt" in row:
    right = {"prompt": "?", "answer": "red"}
  with pytest.raises(UserError, match=r"train.jsonl:2: ") as error:
    files(tmp_path, right, row)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("stated_facts", "'facts'"),
    ("label_attribution", "'labels'"),
    ("pair_preference", "'preference'"),
  ],
)
def test_what_a_reward_needs_is_asked_of_every_line(tmp_path, name, wanted):
  source = files(tmp_path, FACTS | PAIR, {"question": "?", "answer": "red"})
  bound = build.bind(
    *(rewards, {"name": name}, "config.rewards.x"),
    provided=("text", "example"),
  )
  with pytest.raises(
    UserError, match=r"config.rewards.x: expected .*jsonl:2"
  ) as error:
    needs.require_all([bound], source)
  assert wanted in str(error.value)
  if name == "stated_facts":
    bound = build.bind(
      *(rewards, {"name": name, "without": "zero"}, "config.rewards.x"),
      provided=("text", "example"),
    )
    needs.require_all([bound], source)
