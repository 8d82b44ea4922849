"""CVR-LLM against its note's values: loops, retrieval, comparison."""

import dataclasses
import json
import math

import numpy as np
import pytest

from mmrl import build, strategies
from mmrl.errors import UserError
from mmrl.strategies import chain_of_comparison, cvr_llm, shown, written
from mmrl.strategies.cvr import comparing, retrieval
from mmrl.strategies.cvr.retrieval import Bank, Row
from mmrl.strategies.evaluating import items
from strategies.scripts import PICTURE, Turns, answer, garbage, question

DOCUMENTS = [x.split() for x in ("a dog runs", "a cat", "a dog and a dog")]


def test_bm25_golden():
  bank, queries = retrieval.bm25_vectors(
    DOCUMENTS, [["dog", "runs", "fast"], ["fish"]]
  )
  wanted = [
    [0.139823, 0, 0, 0.492150, 1.027046],
    [0.162843, 0, 1.196133, 0, 0],
    [0.164346, 0.800677, 0, 0.578466, 0],
  ]
  np.testing.assert_allclose(bank, wanted, atol=1e-6)
  first, none = queries
  np.testing.assert_allclose(first, [0, 0, 0, 0.492150, 1.027046], atol=1e-6)
  cosines = retrieval.cosines(first, bank)
  np.testing.assert_allclose(cosines, [0.992548, 0, 0.249638], atol=1e-6)
  assert not none.any() and not retrieval.cosines(none, bank).any()
  empty, _ = retrieval.bm25_vectors([[], []])
  assert empty.shape == (2, 0)


XM, XT = np.array([1.0, 0]), np.array([1.0, 1])
XM_BANK = np.array([[1.0, 0], [0, 1], [3, 4], [0, 0]])
XT_BANK = np.array([[1.0, 0], [2, 2], [-1, 1], [1, 1]])


@pytest.mark.parametrize(
  ("alpha", "wanted"),
  [(1.0, [1.707107, 1, 0.6, 1]), (0.5, [1.207107, 1, 0.3, 1])],
)
def test_scores_golden(alpha, wanted):
  found = retrieval.icl_scores(XM, XM_BANK, XT, XT_BANK, alpha=alpha)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_selection_golden():
  scores = np.array([1.707107, 1, 0.6, 1])

  def select(k, exclude=()):
    return retrieval.select_icl(scores, k=k, exclude=exclude).tolist()

  assert select(2) == [0, 1]
  assert select(2, [0]) == [1, 3]
  assert select(4, [1]) == [0, 3, 2]


def echo(ask):
  return f"<{written(ask.messages)}>"


@pytest.mark.parametrize(
  ("query", "revised"),
  [
    ("What is on the table?", "<What is on the table?>"),
    ("", "<Describe the scene.>"),
  ],
)
def test_loops_golden(query, revised):
  reasoner = Turns("Describe the scene.", "B", query, "A")
  captioner = Turns(echo)
  found = answer(cvr_llm, reasoner=reasoner, captioner=captioner).answer
  (loop,) = found.notes["loops"]
  assert loop == {
    "init": "<Describe the scene.>",
    "pseudo": "B",
    "query": query,
    "revised": revised,
  }
  assert found.text == "A" and found.notes["description"] == revised
  # Three for the description, and the answer.
  assert (len(reasoner.asked), len(captioner.asked)) == (4, 2)
  assert all(shown(ask.messages) == [PICTURE] for ask in captioner.asked)
  assert not any(shown(ask.messages) for ask in reasoner.asked)


def test_an_empty_description_leaves_the_first_one():
  reasoner, captioner = Turns("Describe.", "B", "q", "A"), Turns("dogs", " ")
  found = answer(cvr_llm, reasoner=reasoner, captioner=captioner).answer
  assert found.notes["description"] == "dogs"


def test_several_pictures_are_described_one_after_the_other():
  reasoner, captioner = Turns("Describe."), Turns("x", "dog", "y", "cat")
  found = answer(
    cvr_llm,
    question(pictures=(PICTURE, PICTURE)),
    reasoner=reasoner,
    captioner=captioner,
  ).answer
  assert found.notes["description"] == "Picture 1: dog\nPicture 2: cat"
  assert (len(reasoner.asked), len(captioner.asked)) == (7, 4)


def test_no_picture_fails_by_itself():
  found = answer(cvr_llm, question("2+2?", ()), reasoner=Turns("4"))
  assert "expected a picture to describe" in found.failure.error


# Examples.

ROWS = [
  Row("a", "what runs?", "a dog runs", "a dog", (1.0, 0.0)),
  Row("b", "what sits?", "a cat sits", "a cat", (0.0, 1.0)),
  Row("c", "what runs?", "a horse runs", "a horse", (1.0, 1.0)),
]


def test_nearest_rows_without_the_question_itself():
  bank = Bank(ROWS)

  def names(name, text, embedding=(), **options):
    options = {"k": 2, "alpha": 1.0, **options}
    return [x.name for x in bank.nearest(name, text, embedding, **options)]

  assert names("x", "what runs? a dog runs") == ["a", "c"]
  assert names("a", "what runs? a dog runs") == ["c", "b"]
  assert names("x", "nothing known", (0.0, 2.0)) == ["b", "c"]
  assert names("x", "nothing known", (0.0, 2.0), alpha=0.0) == ["a", "b"]
  with pytest.raises(UserError, match="x: expected an embedding of 2 numbers"):
    names("x", "y", (1.0,))
  with pytest.raises(UserError, match="embeddings of one length"):
    Bank([*ROWS, Row("d", "", "", "")])


def test_random_rows_are_of_name_and_seed():
  bank = Bank([Row(f"{i}", "", "", "") for i in range(30)])
  found = [x.name for x in bank.at_random("3", k=4, seed=0)]
  again = [x.name for x in bank.at_random("3", k=4, seed=0)]
  other = [x.name for x in bank.at_random("3", k=4, seed=1)]
  assert found == again != other and "3" not in found and len(found) == 4


@pytest.fixture
def bank(tmp_path):
  """A file that a run of the strategy writes, with a failed item."""
  found = {}
  reasoner = Turns("Describe.", "?", "q", "a dog")
  embedder = Turns("[1, 0]")
  options = {"embed": True}
  found = answer(
    cvr_llm,
    options=options,
    reasoner=reasoner,
    captioner=Turns("a dog runs"),
    embedder=embedder,
  )
  failed = answer(cvr_llm, question(pictures=()))
  path = tmp_path / "items.jsonl"
  lines = [items.item(0, found), items.item(1, failed)]
  path.write_text("".join(json.dumps(vars(one)) + "\n" for one in lines))
  return str(path)


def test_a_runs_items_are_a_bank(bank):
  (row,) = retrieval.read(bank).rows
  assert row == Row("a", "how many?", "a dog runs", "a dog", (1.0, 0.0))
  other = question("what runs?")
  reasoner = Turns("Describe.", "?", "q", "7")
  models = {"reasoner": reasoner, "captioner": Turns("a cat")}
  # Of the same name as the bank's only row.
  found = answer(cvr_llm, other, {"bank": bank}, **models).answer
  assert found.notes["examples"] == []
  other = dataclasses.replace(other, name="z")
  found = answer(cvr_llm, other, {"bank": bank}, **models).answer
  assert found.notes["examples"] == ["a"]
  assert "Task: how many?\nAnswer: a dog\n\n" in reasoner.texts[-1]


def bind(**options):
  spec = {"name": "cvr_llm", **options}
  return build.bind(strategies, spec, "strategy", provided=("example",))


def test_banks_and_options_are_checked(bank, tmp_path):
  assert bind(bank=bank, embed=True).options["embed"]
  for options, message in (
    ({"k": 0}, "k of at least 1"),
    ({"alpha": -1.0}, "alpha of at least 0"),
    ({"choose": "random"}, "expected a bank of examples with 'random'"),
    ({"choose": "best"}, "strategy.choose: expected one of 'nearest'"),
    ({"bank": str(tmp_path / "none")}, "expected a readable file of items"),
  ):
    with pytest.raises(UserError, match=message):
      bind(**options)
  other = tmp_path / "other.jsonl"
  found = answer(strategies.direct, policy=Turns("x"))
  other.write_text(json.dumps(vars(items.item(0, found))) + "\n")
  with pytest.raises(UserError, match="found a without its 'task'"):
    bind(bank=str(other))
  other.write_text("{}\n")
  with pytest.raises(UserError, match=r"other.jsonl:1: expected an item"):
    bind(bank=str(other))
  other.write_text("")
  with pytest.raises(UserError, match="expected answered items in .*, found n"):
    bind(bank=str(other))


def test_an_embedding_that_cannot_be_read_fails_by_itself():
  found = answer(cvr_llm, options={"embed": True}, embedder=Turns("no"))
  assert "expected a list of numbers from the embedder" in found.failure.error


# The comparison.


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("True", 1),
    ("The answer is: False.", -1),
    ("Equal", 0),
    ("It is not True but False", -1),
    ("B is better", None),
    ("", None),
    ("untrue", None),
  ],
)
def test_verdicts_golden(text, wanted):
  assert comparing.parse_verdict(text) == wanted


def test_report_golden():
  verdicts = [[1, 1, 0, 1], [1, -1, 0, -1], [0, 1, 1, 1], [1, 1, -1, 1]]
  found = comparing.coc_report(verdicts)
  assert found["better"] == [75, 75, 25, 75, 62.5]
  assert found["equal"] == [25, 0, 50, 0, 18.75]
  assert found["worse"] == [0, 25, 25, 25, 18.75]
  found = comparing.coc_report([[1, None], [-1, None]])
  assert found["better"][0] == 50 and math.isnan(found["better"][1])
  assert found["better"][2] == 50


def test_a_judge_compares_in_four_steps_and_is_asked_twice():
  judge = Turns("True", "hm", "False", "hm", "hm", "because: equal")
  pair = question(answers=("a caption", "a description"))
  found = answer(chain_of_comparison, pair, judge=judge).answer
  assert list(found.notes["verdicts"].values()) == [1, -1, None, 0]
  assert len(judge.asked) == 6
  assert "a caption" in judge.texts[0] and "a description" in judge.texts[0]
  assert "hm" in judge.texts[-1]
  judge = Turns("Equal")
  found = answer(chain_of_comparison, pair, {"direct": True}, judge=judge)
  assert json.loads(found.answer.text) == {"direct": 0}
  assert len(judge.asked) == 1


def test_a_comparison_wants_two_texts_and_a_verdict():
  found = answer(chain_of_comparison, judge=Turns("True"))
  assert "expected two texts in 'answers'" in found.failure.error
  pair = question(answers=("a", "b"))
  found = answer(chain_of_comparison, pair, judge=Turns("hm"))
  assert "found no verdict" in found.failure.error


def test_any_reply_can_be_read():
  for text in garbage():
    assert comparing.parse_verdict(text) in (1, 0, -1, None)
    found = retrieval.parse_embedding(text)
    assert found is None or all(isinstance(x, float) for x in found)
    retrieval.words(text)
