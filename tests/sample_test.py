"""Answers about files, and the pictures of their attention."""

import dataclasses

import jax
import numpy as np
from PIL import Image
import pytest
import runs
import small_models
from small_models import clip, picture, user

from mmrl import hub, models
from mmrl.errors import UserError
from mmrl.sample import answer as sample

LENGTH = 6
CHAT = user(picture(16, 24, 1), "a", clip(5, 16, 16, 2.0, 2), "what?")


@pytest.fixture(
  scope="module",
  params=small_models.one_family(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]),
)
def model(request):
  config = small_models.small_config(family=request.param)
  return small_models.make_model(config)


@pytest.fixture(scope="module")
def found(model):
  return sample.answer(model, CHAT, length=LENGTH, layer=1)


def whole(model, found):
  """Greedy tokens and layer 1 of question and answer in one row."""
  prompt = model.processor.collate([found.encoded])
  apply = jax.jit(models.apply, static_argnums=1, static_argnames="attention")
  tokens = np.zeros((1, 1, LENGTH), np.int32)
  # What stands behind a token doesn't change it.
  for at in range(LENGTH):
    row = small_models.full_rows(prompt, tokens)
    output = apply(model.params, model.config, row, attention="all")
    logits = np.array(output.logits[0, -LENGTH - 1 + at])
    logits[list(model.config.banned_token_ids)] = -np.inf
    tokens[..., at] = logits.argmax()
  row = small_models.full_rows(prompt, tokens)
  output = apply(model.params, model.config, row, attention="all")
  rows = output.attention[1, 0].mean(0)[-LENGTH:, :-LENGTH]
  return tokens[0, 0], np.asarray(rows)[:, prompt.mask[0]]


def test_answer_and_attention_are_those_of_full_rows(model, found):
  tokens, rows = whole(model, found)
  count = len(found.tokens)
  decode = model.processor.tokenizer.decode
  assert list(found.tokens) == [decode([i]) for i in tokens[:count]]
  ended = tokens[count - 1] == model.config.eos_token_id
  assert count == LENGTH or ended
  np.testing.assert_allclose(found.attention, rows[:count], atol=1e-5)


@pytest.mark.full
def test_sampling_follows_the_seed(model):
  def text(seed):
    return sample.answer(
      model, user("q"), length=8, temperature=1.0, seed=seed
    ).text

  assert text(1) == text(1)
  assert len({text(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("layer", [3, -4])
def test_no_such_layer(model, layer):
  with pytest.raises(UserError, match=f"3-layer decoder, found {layer}"):
    sample.answer(model, CHAT, length=LENGTH, layer=layer)


def test_sheet_has_a_strip_for_each_token(model, found):
  one = sample.draw(model, found, "0")
  assert one.size == sample.draw(model, found, "mean").size
  everything = sample.draw(model, found, "all")
  strip = 0.7 * one.width * (sample._SIDE + sample._LABEL)
  assert everything.width * everything.height >= strip * len(found.tokens)
  # A picture and at least two frames, each of them _SIDE wide.
  assert one.width > 3 * sample._SIDE
  drawn = np.asarray(one)
  assert (drawn != 255).any(-1).mean() > 0.5


def test_sheet_has_question_and_answer(model, found):
  """Each changes the head of the sheet, which grows with them, and no more."""

  def sheet(**changes):
    return sample.draw(model, dataclasses.replace(found, **changes), "0")

  assert found.question == "a\nwhat?"
  plain, longer = sheet(text="yes"), sheet(text="yes " * 400)
  assert longer.width == plain.width
  grown = longer.height - plain.height
  assert grown > 0 and grown % sample._LINE == 0
  below = np.asarray(plain)[-sample._SIDE :]
  np.testing.assert_array_equal(np.asarray(longer)[-sample._SIDE :], below)
  for changes in ({"question": "b"}, {"text": "no"}):
    other = np.asarray(sheet(**({"text": "yes"} | changes)))
    rows = np.nonzero((other != np.asarray(plain)).any((1, 2)))[0]
    assert len(rows) and rows.max() < sample._GAP + 2 * sample._LINE


@pytest.mark.parametrize("text", ["", "one two  three", "x" * 300, "no " * 99])
def test_lines_hold_the_text_and_fit(text):
  lines = sample._lines(text, 200)
  assert "".join("".join(lines).split()) == "".join(text.split())
  assert max(map(sample._font(sample._HEAD).getlength, lines)) <= 200
  if "x" not in text:
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_attention_is_drawn_where_it_is(model, found):
  """All on one visual token: the other tiles are just pictures."""
  (at,) = np.nonzero(found.encoded.visual_index == 1)
  heat = np.zeros_like(found.attention)
  shown = []
  for place in (None, at):
    heat[:, place if place is not None else []] = 1.0
    marked = dataclasses.replace(found, attention=heat)
    shown.append(np.asarray(sample.draw(model, marked, "mean"), float))
  (rows, columns) = np.nonzero(np.abs(shown[1] - shown[0]).max(-1) > 1)
  # The picture comes first: 2 x 3 cells, the second of them in the middle.
  assert len(columns)
  assert columns.max() < sample._GAP + sample._SIDE
  middle = sample._GAP + sample._SIDE / 2
  assert abs(columns.mean() - middle) < sample._SIDE / 6
  top = len(shown[0]) - 2 * sample._GAP - sample._SIDE
  assert top - sample._GAP <= rows.min() < rows.mean() < top + sample._SIDE / 3


@pytest.mark.parametrize("token", ["6", "-1", "first", ""])
def test_no_such_token(model, found, token):
  with pytest.raises(UserError, match=f"expected --token 0 to .*{token!r}"):
    sample.draw(model, found, token)


@pytest.mark.full
def test_nothing_to_look_at(model):
  # As long as above, and so the same program.
  found = sample.answer(model, user("q"), length=8, temperature=1.0)
  with pytest.raises(UserError, match="pass --image or --video"):
    sample.draw(model, found, "mean")


@pytest.mark.full
def test_command(tmp_path):
  """The shipped model, a picture file and a PNG of all tokens."""
  file, out = tmp_path / "a.png", tmp_path / "out.png"
  Image.fromarray(picture(64, 64)).save(file)
  done = runs.command(
    *("mmrl.sample", "--model=tiny", f"--image={file}", "--length=8"),
    *("--prompt=is there a circle?", f"--attention={out}", "--token=all"),
  )
  assert done.returncode == 0, done.stderr
  model = hub.load("tiny")
  found = sample.answer(
    model, user(picture(64, 64), "is there a circle?"), length=8
  )
  assert done.stdout == found.text + "\n"
  (line,) = done.stderr.splitlines()
  assert "is the tiny one: it knows easy-VQA's questions" in line
  with Image.open(out) as sheet:
    assert sheet.size == sample.draw(model, found, "all").size


def test_what_the_tiny_model_can_do_is_said_of_that_alone(model):
  assert hub.is_tiny(hub.load("tiny", dtype="bfloat16").config)
  assert not hub.is_tiny(model.config)


@pytest.mark.full
@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--model=tiny"], "expected --prompt, found none"),
    (["--model=tiny", "--prompt=q", "--image=no.png"], "no.png"),
    (["--model=tiny", "--prompt=q", "--length=0"], "--length"),
    (["--model=tiny", "--prompt=q", "--attention=a.png"], "pass --image"),
  ],
)
def test_mistakes_are_one_line(arguments, message):
  done = runs.command("mmrl.sample", *arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
