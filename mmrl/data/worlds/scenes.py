"""The source Scenes: questions about drawn pictures."""

from collections.abc import Sequence
from typing import Any

from mmrl.data.example import Example, ask
from mmrl.data.worlds import source
from mmrl.data.worlds.source import World
from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes import asking, pairs, questions, scene, sentences

# Asked of where a config names no kinds; "describe" is the other one.
SCENE_KINDS = asking.Options().kinds


class Scenes(World):
  """Questions about drawn pictures of one to six things.

  The kinds and the splits are in docs/worlds.md. `region` of a picture is the
  box of the thing that the answer depends on, where it is one thing. `extra`
  has "scenes" and "question" (`mmrl.worlds.scenes`), "asked"
  (`mmrl.worlds.items`), "boxes" (of each picture, those of all things that the
  answer depends on), "facts" (sentences that it depends on), "other_facts", and
  of kind "describe" "preference" (`mmrl.worlds.scenes.pairs.Preference`).

  Attributes:
    options: how items are made.
  """

  def __init__(
    self,
    *,
    split: str,
    count: int,
    kinds: Sequence[str] = SCENE_KINDS,
    seed: int = 0,
    size: int = palette.SIDE,
    overlap: bool = False,
    cooccurrence: scene.Matrix | None = None,
    pictures: int = 3,
    reads: int = 2,
    distance: int = 0,
    thoughts: Sequence[str] = (),
    errors: float = 0.0,
    prompt: str = "{question}",
  ):
    """Checks the options; items are made when they are asked for.

    Args:
      split: "train", "validation", "test" or "novel".
      count: number of questions.
      kinds: of questions; items take them in turn.
      seed: another seed gives other items of the split.
      size: side of pictures, a multiple of 112; things keep their size.
      overlap: whether things may cover each other in part.
      cooccurrence: [8][8] weights of a shape (column) beside a shape (row),
        such as `mmrl.worlds.scenes.scene.paired` returns; None if shapes are
        independent.
      pictures: of kind "several", 2 or 3.
      reads: things whose colours "read_two" asks for, 2 to 4.
      distance: words of other text between pictures and question.
      thoughts: styles of `mmrl.worlds.scenes.sentences.STYLES` of the texts to
        learn from, in turn; there are none without.
      errors: share of these thoughts that misread a thing.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: if an option has no such value.
    """
    palette.check_number("distance", distance, 0, 10**6)
    palette.check_number("errors", errors, 0.0, 1.0)
    palette.check_list("thoughts", thoughts, sentences.STYLES)
    self.options = asking.Options(
      split,
      kinds,
      seed,
      size,
      overlap,
      cooccurrence,
      pictures,
      reads,
    )
    super().__init__(f"scenes/{split}/{seed}", count, prompt)
    self._distance, self._errors = distance, float(errors)
    self._thoughts = tuple(thoughts)

  def __getitem__(self, index: int) -> Example:
    index = self._at(index)
    item = asking.item(self.options, index)
    question = item.question
    boxes = [[] for _ in item.scenes]  # type: list[list[palette.Box]]
    for picture, i in questions.relevant(question, item.scenes):
      boxes[picture].append(item.scenes[picture].things[i].box)
    shown = []
    for one, found in zip(item.scenes, boxes, strict=True):
      part: dict[str, Any] = {"type": "image", "image": scene.render(one)}
      if len(found) == 1:
        part["region"] = found[0]
      shown.append(part)
    facts = sentences.facts(item.scenes, question)
    extra: dict[str, Any] = {
      "scenes": item.scenes,
      "question": question,
      "asked": item.asked,
      "boxes": tuple(map(tuple, boxes)),
      "facts": tuple(fact.text for fact in facts if fact.relevant),
      "other_facts": tuple(fact.text for fact in facts if not fact.relevant),
    }
    if question.kind == "describe":
      extra["preference"] = pairs.prefer(item.scenes[0], self._draws(index, 1))
    text = question.text
    if self._distance:
      text = f"{sentences.filler(self._draws(index, 2), self._distance)} {text}"
    return Example(
      name=self._name(index),
      question=question.text,
      messages=ask(text, self._prompt, shown),
      answer=item.answer,
      kind=question.kind,
      answers=self._answers(item, index),
      extra=extra,
    )

  def kinds(self) -> tuple[str, ...]:
    """Returns the kinds of its questions."""
    return tuple(self.options.kinds)

  def _told(self, index: int) -> tuple[str, str, Sequence[str]]:
    item = asking.item(self.options, index)
    return item.question.text, item.answer, self._answers(item, index)

  def _answers(self, item: asking.Item, index: int) -> Sequence[str]:
    if not self._thoughts:
      return ()
    style = self._thoughts[
      index // len(self.options.kinds) % len(self._thoughts)
    ]
    thought = sentences.think(
      item.question,
      item.scenes,
      style,
      error=self._errors,
      draws=self._draws(index, 3),
    )
    return (source.answer(thought.text, thought.answer),)

  def _draws(self, index: int, purpose: int) -> Draws:
    """Returns draws that the item itself isn't made from."""
    split = scene.SPLITS.index(self.options.split)
    return Draws(self.options.seed, split, index, purpose)
