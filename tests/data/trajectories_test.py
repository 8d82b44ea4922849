"""Expert trajectories: which rows a batch gets, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import small_models

from mmrl import data
from mmrl.data import sources, trajectories
from mmrl.errors import UserError

# Every byte is a token: a text has as many as it has letters, and its end.
END, PAD = small_models.IDS["eos_token_id"], small_models.IDS["pad_token_id"]
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def processor():
  return small_models.make_processor(small_models.small_config())


def write(folder, *lines):
  path = folder / "experts.jsonl"
  path.write_text("\n".join(lines) + "\n", "utf-8")
  return str(path)


def line(name, text):
  return json.dumps({"name": name, "text": text})


def example(name):
  return data.Example(name, "?", [], "1")


@pytest.fixture
def read(tmp_path, processor):
  def read(*lines, length=6, count=2):
    return trajectories.Trajectories(
      write(tmp_path, *lines),
      known=iter(NAMES),
      processor=processor,
      length=length,
      count=count,
    )

  return read


def test_rows_by_hand(read, processor):
  one, seven, x = map(processor.tokenizer.encode, ("one", "seven", "x"))
  found = read(line("b", "one"), "", line("a", "x"), line("b", "seven"))
  tokens, mask, texts = found.rows([example(name) for name in "bcab"])
  assert tokens.shape == mask.shape == (4, 2, 6)
  assert tokens.dtype == np.int32 and mask.dtype == bool
  b = [[*one, END, PAD, PAD], [*seven, END]]
  assert tokens[0].tolist() == tokens[3].tolist() == b
  assert mask[0].tolist() == [4 * [True] + 2 * [False], 6 * [True]]
  assert not mask[1].any() and (tokens[1] == PAD).all()
  assert tokens[2, 0].tolist() == [*x, END, PAD, PAD, PAD, PAD]
  assert mask[2].sum(-1).tolist() == [2, 0]
  both = ["one", "seven"]
  assert texts == [both, [None, None], ["x", None], both]


def test_a_row_is_what_the_sampler_would_have_written(read, processor):
  found = read(line("a", "é ?"), length=8, count=1)
  tokens, mask, texts = found.rows([example("a")])
  assert processor.decode(tokens, mask) == texts[0] == ["é ?"]
  assert tokens[mask].tolist() == processor.encode_answer("é ?", 8, "a")


def test_what_does_not_fit_is_left_out_and_counted(read):
  lines = [("a", "123456"), ("a", "12345"), ("a", "1"), ("a", "2"), ("b", "3")]
  found = read(*(line(*pair) for pair in lines), line("b", "1234567"))
  assert (found.too_long, found.surplus) == (2, 1)
  assert (found.trajectories, found.questions) == (3, 2)
  assert found.rows([example("a")]).texts == [["12345", "1"]]
  assert str(found) == (
    "3 expert trajectories of 2 questions; left out: 2 of more than 6 tokens,"
    " 1 beyond 2 per question"
  )


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ("{nope", "expected a line of JSON"),
    ("[1]", "expected an object with strings 'name' and 'text'"),
    ('{"name": "a"}', "expected an object with strings 'name' and 'text'"),
    ('{"text": "a"}', "expected an object with strings 'name' and 'text'"),
    ('{"name": "a", "text": 3}', "expected an object with strings"),
    ('{"name": ["a"], "text": "b"}', "expected an object with strings"),
    (line("d", "b"), "expected the name of a question, such as 'a', found 'd'"),
    (line("a", ""), "expected a trajectory, found empty text"),
    (line("a", " \n"), "expected a trajectory, found empty text"),
    (line("a", "b<|image_pad|>"), r"found the token '<\|image_pad\|>'"),
    (line("a", "<|video_pad|>"), r"found the token '<\|video_pad\|>'"),
    (line("a", "b<|im_end|>"), r"found the token '<\|im_end\|>'"),
    (line("a", "b<|endoftext|>"), r"found the token '<\|endoftext\|>'"),
    ('{"name": "a", "text": "b", "score": 1}', "no other keys than name, text"),
    ('{"name": "a", "text": "b", "text": "c"}', "found 'text' twice"),
    ('{"name": "a", "text": "\\frac"}', "without control characters"),
    ("[" * 5000, "expected a row, found lists or objects within each other"),
  ],
)
def test_mistakes_name_file_and_line(read, bad, message):
  with pytest.raises(UserError, match=f"experts.jsonl:2: .*{message}") as error:
    read(line("a", "b"), bad)
  assert "\n" not in str(error.value)


def test_unknown_tokens_are_refused(tmp_path, processor):
  """A vocabulary without the letter z, which it reads as <unk>."""
  lacking = dataclasses.replace(processor, tokenizer=Lacking(processor))
  with pytest.raises(UserError, match=r"jsonl:1: .* found the token '<unk>'"):
    trajectories.Trajectories(
      write(tmp_path, line("a", "xyz")),
      known=NAMES,
      processor=lacking,
      length=6,
      count=1,
    )


class Lacking:
  """A tokenizer that doesn't know the letter z."""

  def __init__(self, processor):
    self.encode = processor.tokenizer.encode
    (self.unk_token_id,) = self.encode("z")

  def convert_ids_to_tokens(self, token_id):
    return "<unk>" if token_id == self.unk_token_id else str(token_id)


def test_nothing_to_read(read, tmp_path, processor):
  with pytest.raises(UserError, match="at least one trajectory .* 0 longer"):
    read("")
  with pytest.raises(UserError, match="at most 6 tokens .* and 1 longer ones"):
    read(line("a", "123456"))
  with pytest.raises(UserError, match="readable file of expert trajectories"):
    trajectories.Trajectories(
      str(tmp_path / "none.jsonl"),
      known=NAMES,
      processor=processor,
      length=6,
      count=1,
    )
  for sizes in ({"length": 0}, {"count": 0}):
    with pytest.raises(UserError, match="at least 1 token and 1 expert"):
      read(line("a", "b"), **sizes)


def test_names_open_no_picture(tmp_path, monkeypatch):
  """Of each source they are those of its examples."""
  path = tmp_path / "data.jsonl"
  path.write_text('{"question": "a", "answer": "b"}\n\n' * 3, "utf-8")
  lines, easy = data.Files(path=str(path)), data.EasyVQA(split="test")
  expected = [easy[index].name for index in (0, 7)]
  assert list(lines.names()) == [e.name for e in lines]
  monkeypatch.delattr(sources.Image, "open")
  names = list(easy.names())
  assert len(set(names)) == len(easy)
  assert [names[0], names[7]] == expected
