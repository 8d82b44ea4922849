"""HD-EPIC's questions, in the form of its files, and its annotations."""

import copy
import json

import numpy as np
import pytest

from mmrl import data
from mmrl.benchmarks import questions
from mmrl.benchmarks.contract import Answer
from mmrl.chains import parsing, writing
from mmrl.data.hd_epic import facts
from mmrl.errors import UserError

VIDEO = "P01-20240202-110250"
BOX = "<BBOX 419.29845528161303 759.8126621265317 946.7606194248815 1122.67837>"
# A question of each kind as published (hd-epic-annotations, vqa-benchmark).
PUBLISHED = {
  "3d_perception_fixture_interaction_counting": (
    f"How many times did I close the item indicated by bounding box {BOX} in"
    " <TIME 00:03:1.8 video 1>?",
    ["0", "3", "4", "2", "1"],
    2,
    {"count": 4, "words": "close"},
  ),
  "3d_perception_fixture_location": (
    "Given the direction I am looking at <TIME 00:00:27.2 video 1>, where is"
    " the boiler located?",
    [f"{h} o'clock" for h in (3, 12, 9, 1, 7)],
    1,
    {"clock": 12, "names": ("boiler",)},
  ),
  "3d_perception_object_location": (
    f"Where did I put the object identified by {BOX} at <TIME 00:04:47.9 video"
    " 1> after taking it at <TIME 00:04:47.9 video 1>?",
    [
      *("counter top right from dishwasher", "drawer right from fridge"),
      *("windowsill", "top of storage", "counter left from sink"),
    ],
    4,
    {"fixture": "counter", "names": ("counter",), "words": "put down"},
  ),
  "object_motion_object_movement_itinerary": (
    f"Where was the object {BOX} seen at <TIME 00:03:58.733 video 1> moved"
    " from/to throughout the video?",
    [
      "from drawer bottom right of hob to another counter right of hob",
      "from fridge to sink, then from sink to table right of radiator",
      *("from fridge to sink", "from sink to hob", "from hob to sink"),
    ],
    1,
    {
      "moves": (("fridge", "sink"), ("sink", "table right of radiator")),
      "names": ("fridge", "sink", "table"),
    },
  ),
  "object_motion_object_movement_counting": (
    f"How many times did the object {BOX} seen at <TIME 00:01:21.733 video 1>"
    " change locations in the video?",
    ["3", "1", "2", "4", "5"],
    2,
    {"count": 2},
  ),
  "object_motion_stationary_object_localization": (
    f"After the object {BOX} seen at <TIME 00:03:58.733 video 1> is first"
    " moved, from which of the following starting times does the object remain"
    " static for more than 150 seconds?",
    [f"<TIME 00:0{m}:07.0 video 1>" for m in range(1, 6)],
    3,
    {"threshold": 150},
  ),
}


def entry(question, choices, right, **more):
  return {
    "inputs": {"video 1": {"id": VIDEO}, **more},
    "question": question,
    "choices": choices,
    "correct_idx": right,
  }


@pytest.fixture
def folder(tmp_path):
  for name, (question, choices, right, _) in PUBLISHED.items():
    image = {"image 1": {"id": VIDEO, "time": "00:03:58.733"}}
    more = image if "motion_object_movement_counting" in name else {}
    write(
      tmp_path, name, {f"{name}_0": entry(question, choices, right, **more)}
    )
  write(tmp_path, "gaze_gaze_estimation", {"x": {}})
  (tmp_path / "videos" / "P01").mkdir(parents=True)
  (tmp_path / "videos" / "P01" / f"{VIDEO}.mp4").touch()
  return tmp_path


def write(folder, name, entries):
  path = folder / f"{name}.json"
  path.write_text(json.dumps(entries, indent=4))
  return str(path)


def read(path, folder, **options):
  return data.HdEpic(str(path), media=str(folder / "videos"), **options)


def test_published_questions_and_what_they_say(folder, capsys):
  source = read(folder, folder)
  assert len(source) == 6 and len(source.paths) == 6
  assert "6 questions, times are known of 0" in capsys.readouterr().err
  for one in source:
    name = next(n for n in PUBLISHED if n.endswith(one.kind))
    question, choices, right, wanted = PUBLISHED[name]
    assert one.name == f"{folder / name}.json[{name}_0]"
    assert one.question.startswith(question + "\nA. ")
    assert one.question.endswith(f"\nE. {choices[4]}")
    assert one.answer == "ABCDE"[right]
    assert {k: one.extra[k] for k in wanted} == wanted
    assert {*one.extra} - {*wanted} == {"choices", "asked"}
    (part,) = [p for p in one.messages[0]["content"] if p["type"] == "video"]
    assert part["video"].endswith(f"P01/{VIDEO}.mp4")
  assert [*source.pairs()] == [(e.question, e.answer) for e in source]


# As published, and as first published, under other names: the files' names by
# the key of a track's ids.
FORMS = {"masks": "mask_info", "all_frames": "frame_info"}


def associations(key="masks"):
  def track(name, times, ids):
    return {"track_id": name, "time_segment": times, key: ids}

  return {
    VIDEO: {
      "4870a5041fe72cb4": {
        "name": "glass",
        "tracks": [
          track("b", [300.0, 310.0], ["f3", "f4"]),
          track("a", [238.7, 247.0], ["f1", "f2"]),
        ],
      },
      # Of 19,812 tracks 67 have no frame.
      "df43aa6f802d1561": {"name": "mug", "tracks": [track("c", [1, 2], [])]},
    }
  }


def frame(number, fixture, x=0.0):
  box = [
    419.29845528161303 + x,
    759.8126621265317,
    946.7606194248815,
    1122.67837,
  ]
  return {
    "frame_number": number,
    "3d_location": [0.0, 1.0, 2.0],
    "bbox": box,
    "fixture": fixture,
  }


FRAMES = {
  VIDEO: {
    "f1": frame(7161, "P01_fridge.001"),
    "f2": frame(7410, "P01_sink.001", 50),
    "f3": frame(9000, "P01_sink.001", 90),
    "f4": frame(9300, "P01_table.001", 99),
    "other": frame(10, None, 7),
  }
}


def annotated(folder, frames=FRAMES, key="masks", objects=None):
  place = folder / "scene-and-object-movements"
  place.mkdir(exist_ok=True)
  write(place, "assoc_info", associations(key) if objects is None else objects)
  write(place, FORMS[key], frames)
  return str(place)


@pytest.mark.parametrize("key", FORMS)
def test_annotations_add_times(folder, capsys, key):
  place = annotated(folder, key=key)
  # What goes with the other form isn't read where there are both.
  (other,) = set(FORMS) - {key}
  write(folder / "scene-and-object-movements", FORMS[other], {"x": {}})
  found = {
    one.kind: one.extra for one in read(folder, folder, annotations=place)
  }
  assert "times are known of 4" in capsys.readouterr().err
  windows = ((238.7, 247.0), (300.0, 310.0))
  assert found["object_movement_itinerary"]["windows"] == windows
  assert found["object_movement_counting"]["windows"] == windows
  counted = found["object_movement_counting"]
  assert counted["moves"] == (("fridge", "sink"), ("sink", "table"))
  assert len(counted["names"]) == 3
  rest = found["stationary_object_localization"]
  assert rest["windows"] == windows[:1] and rest["rest"] == (247.0, 300.0)
  # Asked near a begin: where it was put, at the end of the track.
  place = found["object_location"]
  assert place["windows"] == ((310.0, 310.0),)
  assert place["fixture"] == "P01_table.001"


def changed(tree, keys, value):
  """A copy of a tree with something else in one place; None takes it out."""
  tree = copy.deepcopy(tree)
  at = tree
  for key in keys[:-1]:
    at = at[key]
  if value is None:
    del at[keys[-1]]
  else:
    at[keys[-1]] = value
  return tree


GLASS = (VIDEO, "4870a5041fe72cb4")
TRACK = (*GLASS, "tracks", 1)


@pytest.mark.parametrize(
  ("keys", "value", "message"),
  [
    ((VIDEO,), [1], r": expected an object, .* found \[1\]"),
    (GLASS, "cup", r": expected an object, .* found 'cup'"),
    ((*GLASS, "name"), None, ": expected 'name', 'tracks', .* found"),
    ((*GLASS, "name"), 3, r"\[name\]: expected a text, .* found 3"),
    ((*GLASS, "colour"), "red", ": expected it with no other keys .* 'colour'"),
    ((*GLASS, "tracks"), {}, r"\[tracks\]: expected a list, .* found {}"),
    (TRACK, 7, r"\[tracks\]\[1\]: expected an object, .* found 7"),
    ((*TRACK, "masks"), None, r"\[1\]: expected 'track_id', .* 'masks', as"),
    ((*TRACK, "all_frames"), [], r"\[1\]: expected it with no .*'all_frames'"),
    (
      (*TRACK, "time_segment"),
      [3.0, 1.0],
      r"\[1\]\[time_segment\]: expected \[start, end\] in seconds, as .*3.0, 1",
    ),
    ((*TRACK, "time_segment"), ["0", "1"], r"\[time_segment\]: expected .sta"),
    ((*TRACK, "masks"), [4], r"\[masks\]: expected a list of ids, .* \[4\]"),
  ],
)
def test_objects_of_another_form_are_named(folder, keys, value, message):
  objects = changed(associations(), keys, value)
  with pytest.raises(
    UserError, match=rf"assoc_info.json\[{VIDEO}\].*{message}"
  ):
    read(folder, folder, annotations=annotated(folder, objects=objects))


@pytest.mark.parametrize(
  ("keys", "value", "message"),
  [
    ((VIDEO, "f1"), [], r": expected an object, .* found \[\]"),
    ((VIDEO, "f1", "bbox"), None, ": expected 'frame_number', .* found"),
    ((VIDEO, "f1", "bbox"), [1, 2, 3], r"\[bbox\]: expected four numbers, .*3"),
    ((VIDEO, "f1", "frame_number"), 1.5, r"\[frame_number\]: .* found 1.5"),
    ((VIDEO, "f1", "fixture"), 9, r"\[fixture\]: expected a text or null, .*9"),
    ((VIDEO, "f1", "mask"), "a", ": expected it with no other keys .* 'mask'"),
  ],
)
def test_frames_of_another_form_are_named(folder, keys, value, message):
  frames = changed(FRAMES, keys, value)
  with pytest.raises(
    UserError, match=rf"mask_info.json\[{VIDEO}\].f1.*{message}"
  ):
    read(folder, folder, annotations=annotated(folder, frames))


def test_no_fixture_is_null_in_either_way(folder):
  """Without both ends a track isn't known to be a move."""
  for nothing in (None, "Null"):
    frames = {VIDEO: FRAMES[VIDEO] | {"f4": frame(9300, nothing, 99)}}
    source = read(folder, folder, annotations=annotated(folder, frames))
    found = {one.kind: one.extra for one in source}
    assert "windows" not in found["object_movement_counting"]
    assert "moves" in found["stationary_object_localization"]


def test_a_file_of_frames_must_be_there(folder):
  place = annotated(folder)
  (folder / "scene-and-object-movements" / "mask_info.json").unlink()
  with pytest.raises(UserError, match="mask_info.json or frame_info.json of"):
    read(folder, folder, annotations=place)
  # Ids are the same in both.
  write(folder / "scene-and-object-movements", "frame_info", FRAMES)
  assert "windows" in read(folder, folder, annotations=place)[2].extra


def test_times_of_another_number_of_moves_are_left_out(folder):
  frames = {VIDEO: FRAMES[VIDEO] | {"f4": frame(9300, "P01_sink.001", 99)}}
  source = read(folder, folder, annotations=annotated(folder, frames))
  found = {one.kind: one.extra for one in source}
  assert "windows" not in found["object_movement_itinerary"]


def test_chains_to_learn_are_written_where_facts_tell_them(folder, capsys):
  (one,) = read(
    folder / "3d_perception_fixture_location.json", folder, thoughts=True
  )
  assert parsing.parse_chain(one.answers[0]).clock == 12
  capsys.readouterr()
  source = read(folder, folder, thoughts=True, annotations=annotated(folder))
  assert "are left out" in capsys.readouterr().err
  assert [len(texts) for _, texts in source.given()] == [1] * len(source)
  for example in source:
    assert not writing.lacking(example.kind, example.extra)
    assert parsing.parse_chain(example.answers[0]).formed
  with pytest.raises(
    UserError, match="whose chain can be written; 1 lack facts"
  ):
    read(
      folder / "object_motion_object_movement_counting.json",
      folder,
      thoughts=True,
    )


def test_kinds_of_fixtures():
  for place, kind in (
    ("counter top left of fridge", "counter"),
    ("another counter bottom right of microwave", "counter"),
    ("counter left from sink", "counter"),
    ("top of storage right from shelf", "top of storage"),
    ("extractor_fan", "extractor fan"),
    ("sink", "sink"),
  ):
    assert facts.kind_of(place) == kind


KIND = "3d_perception_fixture_interaction_counting"
GOOD = entry(*PUBLISHED[KIND][:3])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"choices": list("012345")}, "5 different choices, A to E, found"),
    ({"choices": ["0", "0", "1", "2", "3"]}, "5 different choices, A to E"),
    ({"correct_idx": 5}, "'correct_idx' from 0 to 4, found 5"),
    ({"correct_idx": "C"}, "'correct_idx' from 0 to 4, found 'C'"),
    (
      {"question": "How many times did I open the item in <TIME 3:1 video 1>?"},
      "times such as <TIME 00:03:1.8 video 1>, found '<TIME 3:1 video 1>'",
    ),
    (
      {"question": "How many?"},
      "a question in HD-EPIC's words, 'did I .. the item', found 'How many",
    ),
    ({"question": ""}, "a question as text, found ''"),
    ({"choices": ["a", "b", "c", "d", "e"]}, "a whole number as right choice"),
    (
      {"inputs": {}},
      "'inputs' with one whole video and frames of it, found {}",
    ),
    (
      {"inputs": {"video 1": {"id": VIDEO, "start_time": "0"}}},
      "'inputs' with one whole video and frames of it",
    ),
    (
      {"inputs": {"video 1": {"id": "P02-x"}}},
      "a video at .*P02-x.mp4, found no",
    ),
    ({"answer": "C"}, "an entry with no other keys .* found 'answer'"),
    ({"metadata": {"window": []}}, r"'metadata' .*'window' \(is it 'windows'"),
    (
      {"metadata": {"windows": [[3, 1]]}},
      "'windows' in 'metadata' as .start, end",
    ),
    ({"metadata": {"clock": 13}}, "'clock' in 'metadata' as the hour, 1 to 12"),
    ({"metadata": {"threshold": 0}}, "'threshold' in 'metadata' as seconds"),
    ({"metadata": {"count": -1}}, "'count' in 'metadata' as the number"),
    (
      {"metadata": {"count": 7}},
      "'count' in 'metadata' as question and right choice have it, .*found 7",
    ),
    (
      {"metadata": {"windows": [[1, 2], [3, 4]], "moves": [["a", "b"]]}},
      "as many 'windows' as 'moves', found 2 and 1",
    ),
  ],
)
def test_what_is_wrong_is_named_by_file_and_entry(folder, change, message):
  path = write(folder, KIND, {"a_0": GOOD, "a_1": GOOD | change})
  with pytest.raises(
    UserError, match=rf"{KIND}.json\[a_1\]: expected {message}"
  ):
    read(path, folder)


def test_other_files_are_refused(folder):
  message = "path: expected a file of HD-EPIC's vqa-benchmark such as"
  for path in (folder / "gaze_gaze_estimation.json", folder / "none.json"):
    with pytest.raises(UserError, match=message):
      read(path, folder)
  empty = folder / "empty"
  empty.mkdir()
  with pytest.raises(
    UserError, match="annotations: expected assoc_info.json of"
  ):
    read(folder, folder, annotations=str(empty))
  question, *rest = PUBLISHED["object_motion_object_movement_counting"][:3]
  for wrong in ("<BBOX 1 2 3>", "<BBOX 1 2 3 4.5.6>"):
    path = write(
      folder,
      "object_motion_object_movement_counting",
      {"a_0": entry(question.replace(BOX, wrong), *rest)},
    )
    with pytest.raises(
      UserError, match=r"json\[a_0\]: expected a box such as <"
    ):
      read(path, folder, annotations=annotated(folder))


def test_the_best_constant_choice_stands_beside_the_score(folder):
  """Choices are told by their texts: "0" is right for three of five."""
  numbers = ("0", "0", "2", "0", "1")
  entries = {}
  for i, right in enumerate(numbers):
    choices = [*"01234"[i:], *"01234"[:i]]
    entries[f"a_{i}"] = GOOD | {
      "choices": choices,
      "correct_idx": choices.index(right),
    }
  path = write(folder, KIND, entries)
  benchmark = questions(
    data={"name": "HdEpic", "path": path, "media": str(folder / "videos")},
    scores={"accuracy": {"name": "first_option"}},
    field="x",
  )
  examples = [*benchmark]
  train = data.EasyVQA(split="train")  # It has no choices to learn from.
  found = benchmark.baseline(train, examples)["accuracy"]
  np.testing.assert_array_equal(found, [1, 1, 0, 1, 0])
  texts = [
    Answer(f"<answer>{one.answer}</answer>", 1, True) for one in examples
  ]
  assert benchmark.grade(texts, examples)["accuracy"].all()


@pytest.mark.full
def test_files_of_kitchens_are_read_with_all_facts(tmp_path):
  from mmrl.worlds.kitchens import asking, files
  from mmrl.worlds.kitchens import questions as made

  options = asking.Options("train", tuple(writing.TEMPLATES))
  items = [made.item(options, i) for i in range(6)]
  files.write(items, options, str(tmp_path))
  source = read(tmp_path / "vqa-benchmark", tmp_path, thoughts=True)
  assert len(source) == 6
  chains = {item.kind: item.chain for item in items}
  for one in source:
    assert one.answers[0] == (
      f"<think>{chains[one.kind]}</think><answer>{one.answer}</answer>"
    )
