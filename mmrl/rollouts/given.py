"""Answers that the data give: for supervised and preference learning."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.machines import processes
from mmrl.models.passes import segments
from mmrl.prompts.processor import Processor
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Request, Setup, Source
from mmrl.types import Batch


def _answers_each(mask: Bool[Array, "P G R"]) -> dict[str, Array]:
  """Computes the mean number of answers that a question has."""
  return {"rollout/answers": mask.any(-1).sum() / mask.shape[0]}


def _written_length(mask: Bool[Array, "P G R"]) -> dict[str, Array]:
  """Computes the mean number of tokens of the answers that are there."""
  there = jnp.maximum(mask.any(-1).sum(), 1)
  return {"rollout/length": mask.sum() / there}


class Given(Source):
  """Returns the answers that each question of the data has, up to G."""

  learns = True

  def __init__(self, setup: Setup, fewer: bool = False, first: bool = False):
    self._setup, self._fewer, self._first = setup, fewer, first
    self._latent = setup.model.latent
    if self._latent:
      self.fields = ("ended", "segment_pictures")
    self.group = setup.answers
    self.measures = (_written_length, *((_answers_each,) if fewer else ()))
    self._processor: Processor | None = None

  def open(self, questions, processor):
    self._processor = processor
    if self._latent:
      ids = [self._latent.token_id]
      self._opening = processor.tokenizer.decode(ids)
    texts = _listed(questions)
    for name, answers in texts:
      self._check(name, answers)
    most = max(len(answers) for _, answers in texts)
    if most < self.group:
      raise UserError(
        f"config.rollout.answers: expected {most}, the most texts that a"
        f" question has in 'answers', found {self.group}"
      )

  def _check(self, name: str, answers: Sequence[str]) -> None:
    found, wanted = len(answers), self.group
    if (0 < found < wanted and self._fewer) or found == wanted:
      return
    few = "1 to " if self._fewer else ""
    hint = "; set config.rollout.fewer=True to take what is there"
    raise UserError(
      f"{name}: expected {few}{wanted} texts in 'answers' (config.rollout"
      f".answers), found {found}{hint if 0 < found < wanted else ''}"
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
      fields={"ended": array(*shape[:2], dtype=bool)}
      | {n: array(*shape, dtype="int32") for n in self._of_segments},
    )

  def _about(
    self, examples: Sequence[Example], tokens: Int[np.ndarray, "P G R"]
  ) -> Int[np.ndarray, "P G R"]:
    """Returns which picture each segment that opens is about, -1 elsewhere."""
    assert self._latent is not None
    opens = np.asarray(segments.kinds(tokens, self._latent)) == segments.OPEN
    about = np.full(tokens.shape, -1, np.int32)
    for place in np.ndindex(tokens.shape[:2]):
      count = int(opens[place].sum())
      about[place][opens[place]] = _pictures_of(examples[place[0]], count)
    return about

  @property
  def _of_segments(self) -> tuple[str, ...]:
    return ("segment_pictures",) if self._latent else ()

  def collect(self, request: Request):
    processor, layout = self._processor, self._setup.layout
    assert processor is not None, "open comes first"
    examples = request.samples.examples
    shape = len(examples), self.group, self._setup.length
    tokens = np.full(shape, processor.config.pad_token_id, np.int32)
    mask = np.zeros(shape, bool)
    for p, example in enumerate(examples):
      for g, text in enumerate(example.answers):
        if self._first and example.pictures:
          text = self._opening + text
        ids = processor.encode_text(text, shape[-1], example.name)
        tokens[p, g, : len(ids)] = ids
        mask[p, g, : len(ids)] = True
    fields = {"ended": np.ones(shape[:2], bool)}
    if self._latent:
      mask &= np.asarray(segments.chosen(tokens, self._latent))
      fields["segment_pictures"] = self._about(examples, tokens)
    batch = Batch(
      prompt=layout.put(request.samples.prompt),
      visual=None,
      tokens=layout.put(tokens),
      mask=layout.put(mask),
      fields=layout.put(fields),
    )
    return Answers(examples, batch, tokens, mask), {}


def _pictures_of(example: Example, count: int) -> Sequence[int]:
  """Returns the numbers of the pictures that a text's segments are about.

  Raises:
    UserError: if a question with several pictures doesn't say.
  """
  looks = example.extra.get("looks")
  if looks is None and example.pictures < 2:
    return [example.pictures - 1] * count
  if looks is None or len(looks) != count:
    raise UserError(
      f"{example.name}: expected 'looks', the number of a picture from 0 for"
      f" each of {count} latent segments, as there are {example.pictures}"
      f" pictures, found {looks!r:.80}"
    )
  if count and not 0 <= min(looks) <= max(looks) < example.pictures:
    raise UserError(
      f"{example.name}: expected 'looks' of numbers below"
      f" {example.pictures}, its pictures, found {looks!r:.80}"
    )
  return looks


class GivenPairs(Given):
  """Returns pairs of the data: the chosen answer first, then the rejected."""

  def __init__(self, setup: Setup, pictures: bool):
    super().__init__(setup)
    self.together = 2 if pictures else 1
    own = ("chosen", *(("twin",) if pictures else ()))
    self.fields = ("ended", *own, *self._of_segments)
    self._own = own

  def open(self, questions, processor):
    self._processor = processor
    texts = _listed(questions)
    for name, answers in texts:
      if len(answers) != 2:
        raise UserError(
          f"{name}: expected a chosen and a rejected text in 'answers', found"
          f" {len(answers)}; write [chosen, rejected], or take the line out"
        )
    equal = [name for name, (one, other) in texts if one == other]
    if len(equal) == len(texts):
      raise UserError(
        f"expected pairs of two different texts, found all {len(texts)} equal,"
        f" as in {equal[0]}; write [chosen, rejected]"
      )
    seen = list(questions.others()) if hasattr(questions, "others") else []
    if self.together > 1 and not any(seen):
      raise UserError(
        "config.rollout.pictures: expected data with 'rejected_images', found"
        " none; add them, or set it to False"
      )
    if jax.process_index():
      return
    if equal:
      print(
        f"{len(equal)} of {len(texts)} pairs are left out, as their texts are"
        f" equal; the first is {equal[0]}"
      )
    if any(seen) and self.together == 1:
      print(
        f"'rejected_images' of {sum(seen)} questions aren't used, as"
        " config.rollout.pictures is False"
      )
    if self.together > 1 and not all(seen):
      print(
        f"{seen.count(False)} of {len(seen)} pairs have no 'rejected_images':"
        " their answers alone are compared"
      )

  def calls(self, state, prompt, key, held=None):
    batch = yield from super().calls(state, prompt, key, held)
    prompts, answers, _ = batch.mask.shape
    array = self._setup.shape
    fields = {
      "chosen": array(prompts, answers, dtype=bool),
      "twin": array(prompts, dtype=bool),
    }
    return batch.with_fields(**{n: fields[n] for n in self._own})

  def collect(self, request: Request):
    answers, values = super().collect(request)
    prompts = len(answers.mask)
    fields = {
      "chosen": np.tile([True, False], (prompts, 1)),
      "twin": np.arange(prompts) % 2 == 1,
    }
    more = {n: self._setup.layout.put(fields[n]) for n in self._own}
    batch = answers.batch.with_fields(**more)
    return Answers(
      answers.examples, batch, answers.tokens, answers.mask
    ), values

  def choose(self, answers, fields):
    del fields
    tokens = answers.tokens[:: self.together]
    differs = (tokens[:, 0] != tokens[:, 1]).any(-1)
    shares = processes.mean({"rollout/pairs": float(differs.mean())})
    kept = np.repeat(differs, self.together)[:, None]
    return np.broadcast_to(kept, answers.mask.shape[:2]), shares


def _listed(questions) -> list[tuple[str, Sequence[str]]]:
  """Returns name and texts to learn of all questions.

  Raises:
    UserError: if the data have no such texts.
  """
  listed = getattr(questions, "given", None)
  if listed is None:
    raise UserError(
      "config.rollout: expected data with answers to learn, found"
      f" {type(questions).__name__}, which has none; use Files with"
      " 'answers'"
    )
  return list(listed())


def given(setup: Setup, *, fewer: bool = False, first: bool = False) -> Source:
  """Takes the answers of the data, G texts per question.

  A text is tokenised by the policy's tokenizer and closed by its end of
  sequence. One of more than R tokens is refused by the name of its question.

  Args:
    setup: of the run.
    fewer: whether questions may have fewer texts than G, which is then the most
      that one has. What is missing is an answer without tokens: it counts in no
      mean, and `rollout/answers` is how many there are on average.
    first: whether each text of a question with a picture begins with a latent
      segment, besides those that its `<latent>` tokens open.

  Raises:
    UserError: if `first` is set and the model has no latent segments.
  """
  if first and setup.model.latent is None:
    raise UserError(
      "config.rollout.first: expected a model with latent segments, found none;"
      " make one with python -m experiments.latent_model, or set it to False"
    )
  return Given(setup, fewer, first)


def given_pairs(setup: Setup, *, pictures: bool = False) -> Source:
  """Takes the pairs of the data: of two texts the first is the chosen one.

  Pairs of equal texts are left out; `rollout/pairs` is the share of the others.

  Args:
    setup: of the run; G is 2.
    pictures: whether each question is asked a second time, about its
      `rejected_images`, with its chosen text alone. Of P prompts these are then
      every second one, the twin of the prompt before. A question without such
      pictures has a twin without an answer.

  Raises:
    UserError: if G isn't 2, or P isn't even where pictures are taken.
  """
  if setup.answers != 2:
    raise UserError(
      f"config.rollout.answers: expected 2, a pair, found {setup.answers}"
    )
  if pictures and setup.prompts % 2:
    raise UserError(
      "config.rollout.prompts: expected an even number, two for each question,"
      f" found {setup.prompts}"
    )
  return GivenPairs(setup, pictures)
