"""Causal-HalBench: numbers by hand, selection, masks, files and scenes."""

import json

import numpy as np
from PIL import Image
import pytest

from mmrl import benchmarks, build, data
from mmrl.benchmarks.causal import masks, numbers, selection
from mmrl.benchmarks.causal.pairs import score_responses
from mmrl.benchmarks.contract import Answer, Benchmark
from mmrl.data import causal_halbench
from mmrl.errors import UserError
from mmrl.worlds.scenes import scene

WHERE = "config.evaluation.benchmarks.mine"
ROLES = ("contextual", "absent", "absent")
# Of each of three pairs: C, A, A of the original, C, A, A, F of the changed.
RIGHT = np.array(
  [[1, 1, 0, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0, 1]], float
)
ASKED = [
  numbers.Asked(f"{i}", f"{i}{'_001' * (j > 2)}", role, f"{role} {j % 3}")
  for i in range(3)
  for j, role in enumerate((*ROLES, *ROLES, "counterfactual"))
]
HEADLINE = ("cac", "aac", "chr", "cpr_contextual", "cpr_absent")


def summary(right, asked=ASKED, **options):
  values = numbers.counts(np.ravel(right), asked, **options)
  return {k: float(x) for k, x in numbers.rates(values).items()}


@pytest.mark.parametrize("pairing", ["same", "first"])
def test_golden(pairing):
  found = summary(RIGHT, pairing=pairing)
  wanted = dict(zip(HEADLINE, (2 / 3, 1 / 6, 1 / 3, 1 / 3, 2 / 3), strict=True))
  assert {k: found[k] for k in HEADLINE} == pytest.approx(wanted)
  assert found["contextual_original"] == 1
  assert found["absent_original"] == pytest.approx(4 / 6)


def test_questions_that_were_not_answered():
  right = RIGHT.copy()
  right[0, 3] = np.nan
  right[:, 6] = np.nan
  found = summary(right)
  wanted = dict(zip(HEADLINE, (1 / 2, 1 / 6, 0, 1 / 2, 2 / 3), strict=True))
  assert {k: found[k] for k in HEADLINE} == pytest.approx(wanted)
  assert set(summary(np.full(21, np.nan)).values()) == {0.0}


def test_the_first_question_may_be_about_another_object():
  """Two changed pictures of one original: the code's trap."""
  asked = [
    numbers.Asked("a", "a", "contextual", "skis?"),
    numbers.Asked("a", "a", "contextual", "dog?"),
    numbers.Asked("a", "a_001", "contextual", "skis?"),
    numbers.Asked("a", "a_002", "contextual", "dog?"),
  ]
  right = np.array([0, 1, 1, 1], float)
  assert summary(right, asked)["cpr_contextual"] == 0.5
  assert summary(right, asked, pairing="first")["cpr_contextual"] == 0


def test_originals_are_resampled():
  """Each draw is of whole pictures: shares of the first and second alone."""
  values = numbers.counts(RIGHT.ravel(), ASKED)
  drawn = {k: np.stack([x[[0]], x[[1]]]) for k, x in values.items()}
  np.testing.assert_allclose(numbers.rates(drawn)["cac"], [1, 0])


COUNTS = np.array(
  [[0, 1678, 1176, 5], [1678, 0, 0, 3], [1176, 0, 0, 0], [5, 3, 0, 0]]
)
# Of class 0; the others aren't read.
FEW = np.zeros((6, 6), int)
FEW[0] = [0, 5, 0, 2, 0, 2]
IN_ORDER = ["yes", "no", "no", "yes", "no", "no", "yes"]


def test_selection_golden():
  labels = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
  found = selection.cooccurrence(labels)
  np.testing.assert_array_equal(found, [[0, 2, 1], [2, 0, 1], [1, 1, 0]])
  for target, present, wanted in (
    (0, [1, 1, 1, 0], [0, 0.587947, 0.412053, 0]),
    (2, [0, 1, 1, 1], [0, 0.5, 0, 0.5]),
    (1, [0, 1, 0, 0], [0, 0, 0, 0]),
  ):
    got = selection.contextual_probabilities(
      COUNTS, target, np.array(present, bool)
    )
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
  ("k", "third", "wanted"),
  [(4, 0, [2, 4, 3, 5]), (4, 1, [2, 4, 5, 1]), (6, 0, None)],
)
def test_candidates_golden(k, third, wanted):
  present = np.array([1, 0, 0, third, 0, 0], bool)
  generator = np.random.default_rng(0)
  found = selection.candidates(FEW, 0, present, generator, k)
  assert (found is None) == (wanted is None)
  if wanted:
    np.testing.assert_array_equal(found, wanted)


def test_never_together_is_drawn():
  present = np.eye(6, dtype=bool)[0]
  generator = np.random.default_rng(0)
  drawn = [
    selection.candidates(FEW, 0, present, generator, 2) for _ in range(20)
  ]
  assert {tuple(x) for x in drawn} == {(2, 4), (4, 2)}


def test_absent_is_likely_and_any():
  excluded = np.array([1, 1, 0, 0], bool)
  for seed in range(5):
    generator = np.random.default_rng(seed)
    assert selection.absent(COUNTS, 0, excluded, generator) == (2, 3)
  generator = np.random.default_rng(0)
  assert (
    selection.absent(COUNTS, 0, np.array([1, 1, 1, 0], bool), generator) is None
  )


def test_the_longest_name_is_meant():
  names = ["dog", "hot dog", "cat"]
  assert selection.named("A Hot Dog.", names) == "hot dog"
  assert selection.named("a bear", names) is None


@pytest.mark.parametrize(
  ("at", "iterations", "pixels"),
  [((30, 30), 1, 25), ((30, 30), 2, 81), ((30, 30), 10, 1681), ((0, 0), 1, 9)],
)
def test_dilation_golden(at, iterations, pixels):
  mask = np.zeros((60, 60), bool)
  mask[at] = True
  assert masks.dilate(mask, iterations=iterations).sum() == pixels


def test_what_stays_is_not_painted():
  mask, stays = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
  mask[30, 30], stays[:, 40:] = True, True
  assert masks.to_fill(mask, stays).sum() == 1230
  tinted = masks.tint(np.zeros((60, 60, 3), np.uint8), mask)
  assert tinted[30, 30].tolist() == [80, 0, 0] and not tinted[0, 0].any()


def drawn(**options):
  return data.Counterfactuals(
    split="test", count=70, cooccurrence=scene.paired(0.8), **options
  )


def test_scenes_before_and_after():
  """Golden answers of each role, one pair of scenes, other pixels equal."""
  source = drawn()
  for start in range(0, 70, 7):
    found = [source[start + i] for i in range(7)]
    assert [x.answer for x in found] == IN_ORDER
    assert [x.question for x in found[:3]] == [x.question for x in found[3:6]]
    before, after = (x.picture["image"] for x in (found[0], found[6]))
    pair = source.pair(start // 7)
    x0, y0, x1, y1 = pair.scene.things[pair.index].box
    differs = (before != after).any(-1)
    assert differs.any()
    differs[y0:y1, x0:x1] = False
    assert not differs.any()
  assert [*source.pairs()][5] == (source[5].question, source[5].answer)
  assert source.counts[3, 5] > 2 * source.counts[3, 0]  # star: ring, circle


def make(**spec):
  return build.construct(
    benchmarks, {"name": "causal_pairs"} | spec, WHERE, field=WHERE
  )


SCENES = {"name": "Counterfactuals", "split": "test", "count": 70}


def test_a_benchmark_of_scenes():
  benchmark = make(data=SCENES, originals=5)
  assert isinstance(benchmark, Benchmark) and len(benchmark) == 35
  examples = [*(benchmark[i] for i in range(35))]
  answers = [Answer(f"It is {x.answer}.", 4, True) for x in examples]
  values = benchmark.grade(answers, examples)
  assert {x.shape for x in values.values()} == {(5,)}
  found = {k: float(x) for k, x in benchmark.summarise(values).items()}
  assert [found[k] for k in HEADLINE] == [0, 0, 0, 1, 1]
  blind = benchmark.summarise(benchmark.baseline(None, examples))
  assert [float(blind[k]) for k in HEADLINE] == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"data": SCENES, "pairing": "last"}, "mine.pairing: expected one of"),
    ({"data": SCENES, "originals": -1}, "mine.originals: expected a number"),
    (
      {"data": SCENES, "parser": "x"},
      "mine.parser: expected one of",
    ),
    (
      {"data": {"name": "Scenes", "split": "test", "count": 1}},
      "expected Counterfactuals or CausalHalBench, .* found Scenes",
    ),
  ],
)
def test_the_benchmark_refuses(spec, message):
  with pytest.raises(UserError, match=message):
    make(**spec)


def rows():
  found = []
  for i, one in enumerate(ASKED):
    changed = one.picture != one.original
    found.append(
      {
        "image_name": f"p{one.original}{'_001' * changed}.png",
        "type": {v: k for k, v in causal_halbench.ROLES.items()}[one.role],
        "answer": "no" if one.role == "absent" else "yes",
        "tag": "inpainted" if changed else "origin",
        "id": i,
        "q": f"Is there a {one.text}?",
      }
    )
  return found


@pytest.fixture
def folder(tmp_path):
  for row in rows():
    Image.new("RGB", (8, 8)).save(tmp_path / row["image_name"])
  (tmp_path / "qa.json").write_text(json.dumps(rows()))
  return tmp_path


def responses(folder, drop=(), **changes):
  said = []
  for row, right in zip(rows(), RIGHT.ravel(), strict=True):
    gold = row["answer"]
    row["answer"] = gold if right else {"yes": "no", "no": "yes"}[gold]
    said.append({k: x for k, x in row.items() if k != "q"} | changes)
  said = [one for i, one in enumerate(said) if i not in drop]
  (folder / "said.json").write_text(json.dumps(said))
  return folder / "said.json"


def test_released_files(folder):
  spec = {"name": "CausalHalBench", "path": str(folder / "qa.json")}
  benchmark = make(data=spec | {"media": str(folder)})
  assert len(benchmark) == 21 and benchmark[3].answer == "yes"
  answers = [
    Answer(x.answer, 1, True) for x in (benchmark[i] for i in range(21))
  ]
  values = benchmark.grade(answers, [benchmark[i] for i in range(21)])
  assert float(benchmark.summarise(values)["cpr_absent"]) == 1


def test_released_responses(folder):
  found = score_responses(folder / "qa.json", responses(folder))
  assert found["cac"].value == pytest.approx(2 / 3)
  assert found["chr"].low <= 1 / 3 <= found["chr"].high
  found = score_responses(folder / "qa.json", responses(folder, {3, 6, 13, 20}))
  assert found["cac"].value == 0.5 and found["chr"].value == 0


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("COCO_val2014_000000000139_001.jpg", "COCO_val2014_000000000139.jpg"),
    ("a_b_007.jpg", "a_b.jpg"),
    *((x, x) for x in ("COCO_val2014_000000000139.jpg", "a_12.jpg", "123.jpg")),
  ],
)
def test_original_golden(name, wanted):
  assert causal_halbench.original(name) == wanted


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"q": None}, r"qa.json\[0\]: expected 'q' as text"),
    ({"type": "ghost"}, "expected 'type' as one of target, absent, inpaint"),
    ({"answer": "maybe"}, "expected 'answer' as one of yes, no, found 'maybe'"),
    ({"tag": "inpainted"}, "NAME_ddd.jpg where the tag is inpainted"),
    ({"type": "inpaint"}, "expected type inpaint of a changed picture"),
    ({"text": "?"}, "no other keys than image_name, .* found 'text'"),
    ({"id": None}, "expected 'id' as a number"),
    ({"image_name": "none.png"}, "a picture at .*none.png"),
  ],
)
def test_files_of_another_form_are_refused(folder, changes, message):
  found = rows()
  found[0] |= changes
  (folder / "qa.json").write_text(json.dumps(found))
  with pytest.raises(UserError, match=message):
    data.CausalHalBench(str(folder / "qa.json"), media=str(folder))


def test_an_id_twice_is_refused(folder):
  (folder / "qa.json").write_text(json.dumps(rows() + rows()[:1]))
  with pytest.raises(UserError, match=r"\[21\]: expected each id .* 0 twice"):
    causal_halbench.rows(folder / "qa.json")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"id": 99}, "found no such question"),
    ({"image_name": "p0.png", "id": 0}, "found a second one"),
    ({"answer": None}, r"said.json\[0\]: expected 'answer'"),
    ({"tag": "ghost"}, "expected tag 'origin' of its question, found 'ghost'"),
    ({"score": 1}, "no other keys .* found 'score'"),
  ],
)
def test_responses_of_another_form_are_refused(folder, changes, message):
  with pytest.raises(UserError, match=message):
    score_responses(folder / "qa.json", responses(folder, **changes))
