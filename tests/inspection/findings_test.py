"""Every question opened and measured, and what is too large for a run."""

import dataclasses

import numpy as np
from PIL import ExifTags, Image
import pytest
import rows

from mmrl import data, hub, inspection
from mmrl.errors import UserError
from mmrl.inspection import Finding, Limits, Remaining
from mmrl.prompts import packing

LIMITS = Limits(tokens=40, patches=64, answer=10)


@pytest.fixture(scope="module")
def processor():
  return hub.load("tiny").processor


@pytest.fixture
def source(tmp_path):
  """Questions, and the faults of some by index."""
  found = rows.good(tmp_path, 9)
  faults = rows.spoil(tmp_path, found)
  return data.Files(path=rows.write(tmp_path / "a.jsonl", found)), faults


def test_every_fault_is_found_and_sizes_are_those_of_a_batch(source, processor):
  questions, faults = source
  found = inspection.inspect(questions, processor, LIMITS)
  assert [one.index for one in found] == list(range(9))
  assert {one.index: one.fault for one in found if one.fault} == faults
  assert [one.name for one in found] == list(questions.names())
  for one in found:
    assert one.message.startswith(f"{one.name}: ") == bool(one.fault)
    if one.fault == inspection.BROKEN:
      assert one.tokens == one.patches == one.answer == 0
      continue
    encoded = processor.encode(questions[one.index].messages, one.name)
    assert one.tokens == len(encoded.tokens)
    assert one.patches == len(encoded.cuts[0].pixels)


@pytest.mark.parametrize("size", ["tokens", "patches", "answer"])
def test_what_just_fits_is_what_a_batch_takes(source, processor, size):
  """One less, and both refuse it."""
  questions, _ = source
  (found,) = inspection.inspect(questions, processor, LIMITS, indices=[0])
  exact = Limits(found.tokens, found.patches, found.answer)
  less = dataclasses.replace(exact, **{size: getattr(exact, size) - 1})

  def take(limits):
    return data.pipeline.take(
      [0],
      questions,
      processor,
      answer_length=limits.answer,
      lengths=(limits.tokens,),
      patches=(limits.patches,),
    )

  take(exact)
  assert not inspection.judge(found, exact).fault
  with pytest.raises(UserError):
    take(less)
  assert inspection.judge(found, less).fault


def test_the_beginning_of_a_file_tells_its_size(tmp_path, processor):
  """Whichever way up, scaled or not, and however little of it is left."""
  files, row = [], {"question": "what?", "answer": "red"}
  turned = Image.Exif()
  turned[ExifTags.Base.Orientation] = 6
  for i, sides in enumerate([(40, 90), (64, 64), (900, 1300), (5, 800)]):
    picture = Image.fromarray(
      np.random.default_rng(i).integers(0, 255, (*sides, 3), np.uint8)
    )
    picture.save(tmp_path / f"{i}.jpg", exif=turned)
    picture.convert("RGBA").save(tmp_path / f"{i}.png")
    files += [f"{i}.jpg", f"{i}.png"]
  path = tmp_path / "a.jsonl"
  rows.write(path, [row | {"images": [name]} for name in files])
  questions = data.Files(path=str(path))

  def look(**options):
    return inspection.inspect(questions, processor, LIMITS, **options)

  whole = look()
  assert len({one.patches for one in whole}) == 4
  assert look(outlines=True) == whole
  half = (tmp_path / "2.png").read_bytes()[:5000]
  (tmp_path / "2.png").write_bytes(half)
  assert look(outlines=True) == whole
  assert look()[5].fault == inspection.BROKEN


def test_texts_to_learn_count_where_they_are_read(tmp_path, processor):
  found = rows.good(tmp_path, 3)
  found[0]["answers"] = ["red " * 30]
  found[1]["answers"] = ["red", "<|im_end|> red"]
  questions = data.Files(path=rows.write(tmp_path / "a.jsonl", found))

  def faults(limits):
    seen = inspection.inspect(questions, processor, limits)
    return [one.fault for one in seen]

  assert faults(LIMITS) == ["", "", ""]
  learned = dataclasses.replace(LIMITS, learns=True)
  assert faults(learned) == ["long text", "broken", ""]


@pytest.mark.full
def test_workers_find_what_threads_find(source, processor):
  questions, _ = source
  alone, others = (
    inspection.inspect(questions, processor, LIMITS, workers=n) for n in (0, 2)
  )
  assert alone == others


def test_patches_of_a_pack_are_what_a_batch_needs(processor, tmp_path):
  """Packs of two, the last filled with the last question."""
  names = [
    rows.picture(tmp_path, f"{i}.png", 64, 32 * (i + 1)) for i in range(5)
  ]
  row = {"question": "what?", "answer": "red"}
  path = tmp_path / "a.jsonl"
  rows.write(path, [row | {"images": [name]} for name in names])
  questions = data.Files(path=str(path))
  found = inspection.inspect(questions, processor, LIMITS)
  shared = [one.patches for one in inspection.packed(found, 2)]
  sizes = [one.patches for one in found]
  assert len(set(sizes)) > 1
  for start, chosen in enumerate(([0, 1], [2, 3], [4, 4])):
    need = max(shared[2 * start : 2 * start + 2])
    encoded = [processor.encode(questions[i].messages, str(i)) for i in chosen]
    packing.collate(encoded, processor.config, patches=(need,), rows=1)
    with pytest.raises(UserError, match="patches"):
      packing.collate(encoded, processor.config, patches=(need - 1,), rows=1)


def test_a_description_counts_faults_sizes_and_pairs():
  found = [Finding(i, f"q{i}", 10 + i, 4, 2) for i in range(8)]
  found.append(Finding(8, "q8", fault="broken", message="q8: torn"))
  text = inspection.describe(found, (12, 20), (4, 8))
  assert text == [
    "9 questions, 1 of which can't be used",
    "  broken: 1, the first: q8: torn",
    "  tokens: median 14, 95 % at most 17, most 17",
    "  patches: median 4, 95 % at most 4, most 4",
    "  answer: median 2, 95 % at most 2, most 2",
    "  padded to 12 tokens and 4 patches: 3",
    "  padded to 20 tokens and 4 patches: 5",
  ]
  assert inspection.counts(found) == "1 broken"


def test_what_remains_is_the_source_without_some(source):
  questions, faults = source
  kept = Remaining(questions, faults)
  indices = [0, 4, 6, 8]
  assert [kept[i].name for i in range(len(kept))] == [
    questions[i].name for i in indices
  ]
  pairs = list(questions.pairs())
  assert list(kept.pairs()) == [pairs[i] for i in indices]
  assert [name for name, _ in kept.given()] == [
    questions[i].name for i in indices
  ]
  # An expert may have written to any of them.
  assert list(kept.names()) == list(questions.names())
  assert kept.paths == questions.paths


def test_what_remains_has_only_what_the_source_has():
  kept = Remaining(data.EasyVQA(split="test"), [0])
  assert hasattr(kept, "pairs") and not hasattr(kept, "given")
  np.testing.assert_equal(len(kept), 9672)
