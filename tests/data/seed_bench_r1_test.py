"""SEED-Bench-R1's rows, its frames and sizes, and its report by level."""

import collections
import json

import av
import numpy as np
from PIL import Image
import pytest

from experiments import seed_bench_r1 as seed_bench_r1_recipe
from mmrl import data, hub, inspection
from mmrl.benchmarks import contract, questions
from mmrl.benchmarks.contract import Answer
from mmrl.data.formats import seed_bench_r1
from mmrl.errors import UserError
from mmrl.models.families import VideoConfig, sizes, uniform_frames

ROW = {
  "sample_id": "a",
  "video_source": "s",
  "video_basename": "v.mp4",
  "current_observation_basename": "a.png",
  "question": "what next?",
  "answer": "put box",
  "task_progress_metadata": [],
}
NEGATIVES = {"negative_answers": ["one", "two", "three", "four", "put box"]}
CHOICES = {f"choice_{k}": text for k, text in zip("abcd", "wxyz", strict=True)}
FIXED = CHOICES | {"golden_choice_idx": "C", "answer": "y"}


def test_wrong_actions_are_drawn_evenly_and_the_letter_is_right():
  letters, drawn = collections.Counter(), collections.Counter()
  for i in range(400):
    found = seed_bench_r1.row(ROW | NEGATIVES | {"sample_id": i})
    _, *lines = found["question"].split("\n")
    texts = [line[3:] for line in lines]
    assert texts["ABCD".index(found["answer"])] == "put box"
    assert len({*texts}) == 4
    letters[found["answer"]] += 1
    drawn.update({*texts} - {"put box"})
  # 100 and 300 are expected; the draws are always these.
  assert all(70 < n < 130 for n in letters.values()) and len(letters) == 4
  assert all(260 < n < 340 for n in drawn.values()) and len(drawn) == 4
  again = [seed_bench_r1.row(ROW | NEGATIVES) for _ in range(2)]
  assert again[0] == again[1]


def test_fixed_choices_keep_their_order():
  found = seed_bench_r1.row(ROW | FIXED)
  assert found["question"] == "<image>what next?\nA. w\nB. x\nC. y\nD. z"
  assert found["answer"] == "C" and "videos" not in found


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (
      NEGATIVES | {"negative_answers": ["a", "a", "b", "put box"]},
      "at least 3 .* 2",
    ),
    ({"negative_answers": "one"}, "'negative_answers' as a list of texts"),
    (
      FIXED | {"golden_choice_idx": "E"},
      "'golden_choice_idx' as A, B, C or D, .*E",
    ),
    (FIXED | {"golden_choice_idx": 2}, "'golden_choice_idx' as A, B, C or D"),
    (FIXED | {"answer": "z"}, "choice C to be the 'answer', 'z', found 'y'"),
    (FIXED | NEGATIVES, "rows without 'negative_answers'"),
    (FIXED | {"choice_d": ""}, "'choice_d' as text that isn't empty"),
    (
      FIXED | {"video_source": "../x"},
      "'video_source' as a name without a folder",
    ),
    (
      FIXED | {"task_progress_metadata": "x"},
      "as a list of actions, found 'x'",
    ),
    (FIXED | {"question": "a <video>?"}, "text without marks, found '<video>'"),
    (
      FIXED | {"task_progress_metadata": [{}]},
      "a video at .*v.mp4, found no file",
    ),
    (FIXED | {"choice": "w"}, "'choice'"),
  ],
)
def test_what_is_wrong_is_named_by_line(tmp_path, row, message):
  (tmp_path / "images" / "s").mkdir(parents=True)
  (tmp_path / "images" / "s" / "a.png").touch()
  path = tmp_path / "rows.jsonl"
  rows = [ROW | FIXED, ROW | row]
  path.write_text("".join(json.dumps(one) + "\n" for one in rows))
  with pytest.raises(UserError, match=f"rows.jsonl:2: expected .*{message}"):
    data.Files(str(path), format="seed_bench_r1", media=str(tmp_path))


@pytest.mark.parametrize(
  ("total", "wanted"),
  [
    (300, "0 20 40 60 80 100 120 140 159 179 199 219 239 259 279 299"),
    (105, "0 21 42 62 83 104"),
    (90, "0 18 36 53 71 89"),
    (45, "0 15 29 44"),
    (5, "0 1 3 4"),
    (3, "0 2"),
  ],
)
def test_frames_golden(total, wanted):
  config = VideoConfig(1, 1, fps=2.0, min_frames=4, max_frames=16)
  found = uniform_frames(total, 30.0, config, 2)
  assert " ".join(map(str, found)) == wanted


@pytest.mark.parametrize("total", [0, 1])
def test_too_few_frames_are_an_error(total):
  with pytest.raises(ValueError, match=f"at least 2 frames, found {total}"):
    uniform_frames(total, 30.0, VideoConfig(1, 1, max_frames=16), 2)


def test_short_clips(tmp_path):
  """One frame is shown, as one step of time; without any, the row is broken."""
  for kind in ("images", "videos"):
    (tmp_path / kind / "s").mkdir(parents=True)
  Image.new("RGB", (64, 64)).save(tmp_path / "images" / "s" / "a.png")
  rows = []
  for frames in (4, 1, 0):
    file = tmp_path / f"videos/s/{frames}.mp4"
    with av.open(str(file), "w") as container:
      stream = container.add_stream("mpeg4", rate=2)
      stream.width = stream.height = 64
      for _ in range(frames):
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
    if not frames:
      file.write_bytes((tmp_path / "videos/s/4.mp4").read_bytes()[:100])
    more = {"video_basename": f"{frames}.mp4", "task_progress_metadata": [{}]}
    rows.append(ROW | FIXED | more)
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in rows))
  source = data.Files(str(path), media=str(tmp_path))
  found = inspection.inspect(
    source, squares(), inspection.Limits(0, 0, 10), workers=0
  )
  assert [one.fault for one in found] == ["", "", inspection.BROKEN]
  assert "rows.jsonl:3: expected a " in found[2].message
  one = squares().encode(source[1].messages, "x")
  assert [cut.grid for cut in one.cuts] == [(1, 8, 8)] * 2
  assert seed_bench_r1_recipe.get_config("data").data.skip_broken


def test_squares_golden():
  assert sizes.square(256, 28) == (252, 252)
  assert sizes.square(256, 32) == (256, 256)
  assert sizes.square(3, 28) == (28, 28)


def squares(**budget):
  """The tiny model's processor, with frames as the recipe has them."""
  from mmrl import config as config_lib
  from mmrl.train import models

  config = config_lib.get_config()
  config.models.policy.side = 60
  config.models.policy.video.uniform = True
  config.models.policy.video.max_frames = 16
  config.models.policy.update(budget)
  return models.with_budget(config, hub.load("tiny").processor)


def test_a_video_is_shown_in_squares_from_first_to_last():
  processor = squares()
  frames = np.zeros((6, 40, 80, 3), np.uint8)
  content = [
    {"type": "video", "video": frames, "fps": 2.0},
    {"type": "image", "image": frames[0]},
    {"type": "text", "text": "?"},
  ]
  encoded = processor.encode([{"role": "user", "content": content}], "x")
  # Cells of 16 pixels: 64 x 64 is 4 x 4 tokens.
  assert [cut.grid for cut in encoded.cuts] == [(3, 8, 8), (1, 8, 8)]
  with pytest.raises(
    UserError, match="policy.side: expected 0 beside max_pixels"
  ):
    squares(max_pixels=100)


def test_a_report_by_level_golden(tmp_path):
  """Domains of L3 and all of it, by questions and not by domains."""
  counts = {
    "Daily life": (137, 439),
    "Hobbies": (95, 295),
    "Recreation": (61, 183),
    "Work": (124, 404),
  }
  rows, texts = [], []
  for domain, (right, all_) in counts.items():
    for i in range(all_):
      rows.append({"question": "?", "answer": "A", "kind": domain})
      text = f"<think>x</think><answer>{'A' if i < right else 'B'}.</answer>"
      texts.append(Answer(text, 1, True))
  path = tmp_path / "validation_L3.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  benchmark = questions(
    data={"name": "Files", "path": str(path)},
    scores={"accuracy": {"name": "first_option", "strict": False}},
    field="x",
  )
  values = benchmark.grade(texts, [*benchmark])
  found = {k: 100 * float(x) for k, x in contract.means(values).items()}
  wanted = {"": 31.57, "/Daily life": 31.21, "/Hobbies": 32.20}
  wanted |= {"/Recreation": 33.33, "/Work": 30.69}
  for part, percent in wanted.items():
    assert found[f"accuracy{part}"] == pytest.approx(percent, abs=0.005)
  domains = [x for name, x in found.items() if "/" in name]
  assert np.mean(domains) == pytest.approx(31.86, abs=0.005)


@pytest.mark.full
def test_files_of_kitchens_go_through_the_video_path(tmp_path, capsys):
  from mmrl.worlds.kitchens import asking, files
  from mmrl.worlds.kitchens import questions as made

  for split in ("train", "L3"):
    options = asking.Options(split, ("planning",))
    items = [made.item(options, i) for i in range(3)]
    folder = tmp_path / split
    (path,) = files.write(items, options, str(folder))
    source = data.Files(path, media=str(folder))
    assert "read as seed_bench_r1" in capsys.readouterr().err
    for one, item in zip(source, items, strict=True):
      index = "ABCD".index(one.answer)
      right = item.choices[item.correct]
      assert one.question.split("\n")[1 + index][3:] == right
      encoded = hub.load("tiny").processor.encode(one.messages, one.name)
      kinds = [cut.kind for cut in encoded.cuts]
      assert kinds == ["video"] * bool(item.gold["progress"]) + ["image"]
