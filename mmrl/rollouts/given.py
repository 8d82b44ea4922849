"""Answers that the data give: for supervised and preference learning."""

import numpy as np

from mmrl.errors import UserError
from mmrl.rollouts import measures
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Request, Setup, Source
from mmrl.types import Batch


class Given(Source):
  """Returns the G answers that each question of the data has."""

  measures = (measures.lengths,)
  learns = True

  def __init__(self, setup: Setup):
    self._setup = setup
    self.group = setup.answers
    self._processor = None

  def open(self, questions, processor):
    self._processor = processor
    wanted, listed = self.group, getattr(questions, "given", None)
    if listed is None:
      raise UserError(
        "config.rollout: expected data with answers to learn, found"
        f" {type(questions).__name__}, which has none; use Files with"
        " 'answers'"
      )
    for name, texts in listed():
      if len(texts) != wanted:
        raise UserError(
          f"{name}: expected {wanted} texts in 'answers' (config.rollout"
          f".answers), found {len(texts)}"
        )

  def calls(self, state, prompt, key, held=None):
    del state, key, held
    yield from ()  # no program is called
    shape = (*prompt.next_position.shape, self.group, self._setup.length)
    array = self._setup.shape
    return Batch(
      prompt=prompt,
      visual=None,
      tokens=array(*shape, dtype="int32"),
      mask=array(*shape, dtype=bool),
      fields={"ended": array(*shape[:2], dtype=bool)},
    )

  def collect(self, request: Request):
    processor, layout = self._processor, self._setup.layout
    assert processor is not None, "open comes first"
    examples = request.samples.examples
    shape = len(examples), self.group, self._setup.length
    tokens = np.full(shape, processor.config.pad_token_id, np.int32)
    mask = np.zeros(shape, bool)
    for p, example in enumerate(examples):
      for g, text in enumerate(example.answers):
        ids = processor.encode_text(text, shape[-1], example.name)
        tokens[p, g, : len(ids)] = ids
        mask[p, g, : len(ids)] = True
    batch = Batch(
      prompt=layout.put(request.samples.prompt),
      visual=None,
      tokens=layout.put(tokens),
      mask=layout.put(mask),
      fields={"ended": layout.put(np.ones(shape[:2], bool))},
    )
    return Answers(examples, batch, tokens, mask), {}


def given(setup: Setup) -> Source:
  """Takes the answers of the data, G texts per question.

  A text is tokenised by the policy's tokenizer and closed by its end of
  sequence. One of more than R tokens is refused by the name of its question.
  """
  return Given(setup)
