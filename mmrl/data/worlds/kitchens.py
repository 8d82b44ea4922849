"""The source Kitchens: questions about drawn videos."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmrl.data.example import Example, ask
from mmrl.data.worlds import source
from mmrl.data.worlds.source import World
from mmrl.worlds import palette
from mmrl.worlds.items import Asked
from mmrl.worlds.kitchens import asking, drawing, planning, questions


class Kitchens(World):
  """Multiple-choice questions about short drawn videos of a kitchen.

  The kinds and the splits are in docs/worlds.md. The answer is the letter of
  the right choice. Of kind "planning" a picture of what is seen at the end
  follows the video, or stands alone where no step is done. `extra` has "item"
  (`mmrl.worlds.kitchens.asking.Item`), "choices", "asked" (`worlds.items`), and
  by their names what rewards compare a thought with (`mmrl.chains.writing`).

  Attributes:
    options: how items are made.
  """

  def __init__(
    self,
    *,
    split: str,
    count: int,
    kinds: Sequence[str] = questions.KINDS,
    seed: int = 0,
    size: int = palette.SIDE,
    view: str = "above",
    fps: float = 2.0,
    priors: bool = True,
    thoughts: bool = False,
    prompt: str = "{question}",
  ):
    """Checks the options; items are made when they are asked for.

    Args:
      split: "train", "L1", "L2" or "L3".
      count: number of questions.
      kinds: of questions; items take them in turn.
      seed: another seed gives other items of the split.
      size: side of the frames, a multiple of 112.
      view: "above", or "turning" with the viewer.
      fps: frames per second.
      priors: whether answers are as uneven as in HD-EPIC; else even.
      thoughts: whether there are texts to learn from.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: if an option has no such value.
    """
    palette.check_flag("thoughts", thoughts)
    self.options = asking.Options(split, kinds, seed, size, view, fps, priors)
    self.options.check(questions.KINDS)
    super().__init__(f"kitchens/{split}/{seed}", count, prompt)
    self._thoughts = thoughts

  def __getitem__(self, index: int) -> Example:
    index = self._at(index)
    item, options = questions.item(self.options, index), self.options
    shown: dict[str, Any] = {"size": options.size, "view": options.view}
    parts: list[dict[str, Any]] = []
    if item.kind != planning.KIND or item.gold["progress"]:
      frames = drawing.frames(item.kitchen, options.fps, **shown)
      parts.append({"type": "video", "video": frames, "fps": options.fps})
    if item.kind == planning.KIND:
      picture = drawing.frame(item.kitchen, item.time, **shown)
      parts.append({"type": "image", "image": picture})
    return Example(
      name=self._name(index),
      question=item.text,
      messages=ask(item.text, self._prompt, parts),
      answer=item.letter,
      kind=item.kind,
      answers=self._answers(item),
      extra={
        "item": item,
        "choices": item.choices,
        "asked": item.asked,
        **item.gold,
      },
    )

  def kinds(self) -> tuple[str, ...]:
    """Returns the kinds of its questions."""
    return tuple(self.options.kinds)

  def asked(self) -> Iterator[Asked]:
    """Yields every question as one sees it who can't see the video."""
    return (questions.item(self.options, i).asked for i in range(len(self)))

  def _told(self, index: int) -> tuple[str, str, Sequence[str]]:
    item = questions.item(self.options, index)
    return item.text, item.letter, self._answers(item)

  def _answers(self, item: asking.Item) -> Sequence[str]:
    return (source.answer(item.chain, item.letter),) if self._thoughts else ()
