"""Batches: deterministic, restorable, in order."""

import json
import os
import threading

import jax
import numpy as np
from PIL import Image
import pytest
import small_models

from mmrl import data, hub
from mmrl.errors import UserError


@pytest.fixture(scope="module")
def processor():
  return hub.load("tiny").processor


@pytest.fixture(scope="module")
def source():
  return data.EasyVQA(split="test")


def start(source, processor, seed=0, batch_size=8, workers=0):
  return data.batches(
    source,
    processor,
    batch_size=batch_size,
    answer_length=10,
    seed=seed,
    workers=workers,
  )


def write(folder, *rows):
  """A source of these rows."""
  path = folder / "data.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return data.Files(path=str(path))


def names(samples):
  return [example.name for example in samples.examples]


def test_one_run_is_a_function_of_its_seed(source, processor):
  first, again, other = (start(source, processor, seed) for seed in (0, 0, 1))
  for _ in range(3):
    a, b, c = next(first), next(again), next(other)
    assert names(a) == names(b) != names(c)
    jax.tree.map(np.testing.assert_array_equal, a.prompt, b.prompt)


def test_position_is_of_what_was_handed_out(source, processor):
  """Threads read ahead; the saved position doesn't."""
  iterator = start(source, processor)
  for _ in range(3):
    next(iterator)
  position = iterator.get_state()
  expected = [names(next(iterator)) for _ in range(3)]
  fresh = start(source, processor)
  fresh.set_state(position)
  assert [names(next(fresh)) for _ in range(3)] == expected


def test_one_of_several_right_answers_must_fit(tmp_path, processor):
  long = "a long answer of many words"
  one, several, none = write(
    tmp_path,
    {"question": "q", "answer": [long, long]},
    {"question": "q", "answer": [long, "no"]},
    {"question": "q", "answers": [long]},
  )
  for example in (several, none):
    data.encode(example, processor, 4)
  with pytest.raises(UserError, match="data.jsonl:1"):
    data.encode(one, processor, 4)


@pytest.mark.full
def test_workers_make_the_batches_that_threads_make(source, processor):
  """In the same order; and again after a position, which is of what was handed
  out."""
  threads = start(source, processor)
  workers = start(source, processor, workers=2)
  expected = [next(threads) for _ in range(6)]

  def same(one, two):
    assert names(one) == names(two)
    assert one.grids == two.grids and one.shrunk == two.shrunk
    jax.tree.map(np.testing.assert_array_equal, one.prompt, two.prompt)

  for i in range(3):
    same(next(workers), expected[i])
  position = json.loads(json.dumps(workers.get_state()))
  same(next(workers), expected[3])
  workers.close()
  fresh = start(source, processor, workers=2)
  fresh.set_state(position)
  for i in range(3, 6):
    same(next(fresh), expected[i])
  fresh.close()


class Curious:
  """A source whose questions say where they are read; the last has a bug."""

  def __len__(self):
    return 2

  def __getitem__(self, index):
    if index:
      raise Unpicklable(len(self), index)
    where = f"{os.getpid()} {jax.config.jax_platforms}"
    message = {"role": "user", "content": "q"}
    return data.Example("", where, [message], "a")


class Unpicklable(Exception):
  """Made of two arguments, which is not what pickle makes it of."""

  def __init__(self, one, two):
    super().__init__(f"{one} and {two} don't go together")
    self.lock = threading.Lock()


@pytest.mark.full
def test_workers_keep_off_the_accelerator_and_end_with_a_bug(
  processor, monkeypatch
):
  """Whatever JAX may use in this process; no bug makes the reader wait."""
  monkeypatch.setenv("JAX_PLATFORMS", "")
  iterator = start(Curious(), processor, batch_size=1, workers=1)
  found = []
  with pytest.raises(RuntimeError, match=r"Unpicklable: 2 and 1 don't go"):
    for _ in range(9):
      found += [example.question.split() for example in next(iterator).examples]
  assert all(process != str(os.getpid()) for process, _ in found)
  assert {platforms for _, platforms in found} <= {"cpu"}
  iterator.close()


def test_every_question_once_per_epoch_in_a_new_order(processor, tmp_path):
  rows = [{"question": f"q{i}", "answer": "a"} for i in range(12)]
  iterator = start(write(tmp_path, *rows), processor, batch_size=4)
  epochs = [
    [name for _ in range(3) for name in names(next(iterator))] for _ in range(2)
  ]
  assert sorted(epochs[0]) == sorted(epochs[1])
  assert len(set(epochs[0])) == 12
  assert epochs[0] != epochs[1]


def test_fewer_questions_than_a_batch(processor, tmp_path):
  one = write(tmp_path, {"question": "q", "answer": "a"})
  with pytest.raises(UserError, match="batch of 8 questions, found 1"):
    start(one, processor)


def test_a_negative_number_of_workers(source, processor):
  with pytest.raises(UserError, match="found 2 and -1"):
    start(source, processor, workers=-1)


def test_in_order_fills_the_last_batch(source, processor):
  sizes = {"batch_size": 2, "answer_length": 10}
  got = list(data.in_order(source, processor, indices=[5, 2, 9], **sizes))
  assert [count for _, count in got] == [2, 1]
  assert names(got[0][0]) == ["easy_vqa/test/5", "easy_vqa/test/2"]
  assert names(got[1][0]) == ["easy_vqa/test/9"] * 2


def test_a_picture_over_the_budget_is_shrunk_and_counted(processor, tmp_path):
  Image.new("RGB", (900, 700), (9, 99, 9)).save(tmp_path / "a.png")
  row = {"question": "q", "answer": "a", "images": ["a.png"]}
  source = write(tmp_path, row)
  sizes = {"batch_size": 1, "answer_length": 10}
  ((samples, _),) = data.in_order(source, processor, indices=[0], **sizes)
  assert samples.shrunk == 1
  _, rows, columns = samples.grids[0]
  factor = processor.config.vision.patch_size * 2
  assert rows * columns * factor**2 <= processor.picture.max_pixels


@pytest.mark.parametrize("workers", small_models.first(0, 1))
def test_a_broken_picture_names_its_line(processor, tmp_path, workers):
  (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
  row = {"question": "q", "answer": "a", "images": ["a.png"]}
  source = write(tmp_path, row)
  iterator = start(source, processor, batch_size=1, workers=workers)
  with pytest.raises(UserError, match=r"data.jsonl:1: expected a readable"):
    next(iterator)
  iterator.close()


def test_an_answer_that_no_rollout_could_give(processor, tmp_path):
  row = {"question": "q", "answer": "a very long answer, 123456789 words"}
  iterator = start(write(tmp_path, row), processor, batch_size=1)
  with pytest.raises(UserError, match=r"data.jsonl:1: .* at most 10 tokens"):
    next(iterator)


def test_videos_and_pictures_are_packed_by_group(processor, tmp_path):
  """Four questions, two to a row; a video has two frames of patches."""
  frames = []
  for i in range(4):
    Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    frames.append(f"{i}.png")
  video = {"type": "video", "video": frames, "fps": 2}
  picture = {"type": "image", "image": "0.png"}
  text = {"type": "text", "text": "q"}
  parts = [[video, text], [picture, video, text], [text], [picture, text]]
  rows = [
    {"messages": [{"role": "user", "content": p}], "answer": "a"} for p in parts
  ]
  iterator = data.batches(
    write(tmp_path, *rows),
    processor,
    batch_size=4,
    answer_length=10,
    seed=0,
    pack=2,
  )
  samples = next(iterator)
  which = [int(name.rpartition(":")[2]) - 1 for name in names(samples)]
  cells = (32 // processor.config.vision.cell_size,) * 2
  grids = [(2, *cells), (1, *cells), None, (1, *cells)]
  assert samples.grids == [grids[i] for i in which]
  per_picture = cells[0] * cells[1]
  frames = 4 // processor.config.vision.temporal_patch_size
  tokens = [frames, frames + 1, 0, 1]
  found = (samples.prompt.visual_index >= 0).sum(1)
  assert found.tolist() == [per_picture * tokens[i] for i in which]
  patches = samples.prompt.patches
  assert len(patches.pixels) == 2
  used = (patches.frame[..., 1] > 0).sum(1)
  merged = processor.config.vision.spatial_merge_size**2
  assert used.tolist() == (found.reshape(2, 2).sum(1) * merged).tolist()


def test_spread():
  assert data.spread(10, 4) == [0, 2, 5, 7]
  assert data.spread(3, 9) == [0, 1, 2]
  assert data.spread(3, 0) == []


def pairs_of(folder):
  """Questions of which the first two have other pictures."""
  for name, level in (("a", 0), ("b", 255)):
    Image.new("RGB", (64, 64), (level,) * 3).save(folder / f"{name}.png")
  rows = [
    {
      "question": "is it blue?",
      "images": ["a.png"],
      "answers": ["yes", "no"],
    }
    | ({"rejected_images": ["b.png"]} if i < 2 else {})
    for i in range(6)
  ]
  return write(folder, *rows)


def test_twins_follow_their_questions(processor, tmp_path):
  """Also where a process reads some of them; pictures differ where rows do."""
  source = pairs_of(tmp_path)
  options = {"batch_size": 8, "answer_length": 10, "seed": 0, "together": 2}
  whole = data.batches(source, processor, **options, lengths=(40,))
  part = data.batches(source, processor, **options, places=[2, 3, 6, 7])
  for _ in range(3):
    samples, some = next(whole), next(part)
    assert len(samples.examples) == 8 == len(samples.prompt.tokens)
    for one, twin in zip(
      samples.examples[::2], samples.examples[1::2], strict=True
    ):
      assert twin.name == f"{one.name} (other pictures)"
      assert twin.epoch == one.epoch and one.answers == ("yes", "no")
      assert twin.answers == (("yes",) if one.other else ())
    differ = np.ptp(samples.prompt.patches.pixels.reshape(4, 2, -1), axis=1)
    other = [bool(one.other) for one in samples.examples[::2]]
    assert (differ.max(-1) > 0).tolist() == other
    assert [samples.examples[i].name for i in (2, 3, 6, 7)] == names(some)


@pytest.mark.parametrize("places", [[0], [1, 2], [0, 2], [1, 0]])
def test_twins_that_are_read_apart_are_refused(processor, tmp_path, places):
  with pytest.raises(
    UserError, match="the 2 prompts of a question in one mini"
  ):
    data.batches(
      pairs_of(tmp_path),
      processor,
      batch_size=8,
      answer_length=10,
      seed=0,
      together=2,
      places=places,
    )


def test_questions_know_the_pass_over_the_data(processor, tmp_path):
  """Six questions in batches of four: the second batch begins a pass."""
  iterator = start(pairs_of(tmp_path), processor, batch_size=4)
  found = [[e.epoch for e in next(iterator).examples] for _ in range(3)]
  assert found == [[1] * 4, [1, 1, 2, 2], [2] * 4]
  state = iterator.get_state()
  assert next(iterator).examples[0].epoch == 3
  again = start(pairs_of(tmp_path), processor, batch_size=4)
  again.set_state(state)
  assert next(again).examples[0].epoch == 3
