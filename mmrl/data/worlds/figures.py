"""The source Figures: frames of drawn people with faults."""

from collections.abc import Sequence
import dataclasses

from mmrl.data.example import Example, ask
from mmrl.data.worlds import source
from mmrl.data.worlds.source import World
from mmrl.errors import UserError
from mmrl.worlds import palette
from mmrl.worlds.figures import asking, faults


class Figures(World):
  """Frames of drawn people, with faults to name and a score to give.

  Items 2i and 2i + 1 are frames at one time of two generations of one prompt.
  The answer is a JSON object with "labels" and "score". `extra` has "asked"
  (`mmrl.worlds.items`), "labels", "score", "preference" (of the pair: "A", "B"
  or "tie"), "side" ("A" or "B"), "pair" (its number), "boxes" (of what each
  fault changes), "figure" and "compared" (`mmrl.worlds.figures`); `region` is
  the box of a fault that is the only one.
  """

  def __init__(
    self,
    *,
    split: str,
    count: int,
    seed: int = 0,
    size: int = palette.SIDE,
    thoughts: bool = False,
    pairs: bool = False,
    prompt: str = "{question}",
  ):
    """Checks the options; items are made when they are asked for.

    Args:
      split: "train", "validation", "test" or "novel".
      count: number of frames, even; of pairs, where these are asked about.
      seed: another seed gives other items of the split.
      size: side of the frames, a multiple of 112.
      thoughts: whether there are texts to learn from.
      pairs: whether a question is about frame A, and its `partner` about B.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: if an option has no such value.
    """
    palette.check_one_of("split", split, asking.SPLITS)
    palette.check_flag("pairs", pairs)
    if count % 2 and not pairs:
      raise UserError(
        f"count: expected an even number, since frames come in pairs, found"
        f" {count}; ask for {count + 1}"
      )
    palette.check_number("seed", seed, 0, 2**32 - 1)
    palette.check_size(size)
    palette.check_flag("thoughts", thoughts)
    super().__init__(f"figures/{split}/{seed}", count, prompt)
    self._split, self._seed = split, seed
    self._size, self._thoughts, self._step = size, thoughts, 1 + pairs

  def __getitem__(self, index: int) -> Example:
    index = self._step * self._at(index)
    example = self._frame(index)
    if self._step == 1:
      return example
    return dataclasses.replace(example, partner=self._frame(index + 1))

  def _frame(self, index: int) -> Example:
    item = asking.item(self._seed, self._split, index)
    figure, compared = item.figure, item.pair
    count = len(figure.faults)
    boxes = [faults.fault_box(figure, i, self._size) for i in range(count)]
    part = {"type": "image", "image": faults.render(figure, self._size)}
    if count == 1:
      part["region"] = boxes[0]
    question = asking.QUESTION
    return Example(
      name=self._name(index),
      question=question,
      messages=ask(question, self._prompt, [part]),
      answer=item.answer,
      kind="frame",
      answers=self._answers(item),
      extra={
        "asked": item.asked,
        "labels": asking.labels(figure),
        "score": compared.scores[item.side],
        "preference": compared.preference,
        "side": "AB"[item.side],
        "pair": index // 2,
        "boxes": tuple(boxes),
        "figure": figure,
        "compared": compared,
      },
    )

  def _told(self, index: int) -> tuple[str, str, Sequence[str]]:
    item = asking.item(self._seed, self._split, self._step * index)
    return asking.QUESTION, item.answer, self._answers(item)

  def _answers(self, item: asking.Item) -> Sequence[str]:
    if not self._thoughts:
      return ()
    return (source.answer(asking.chain(item.figure), item.answer),)
