"""The source Counterfactuals: scenes before and after a thing is replaced."""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

from mmrl.data.example import Example, ask
from mmrl.data.worlds.source import World
from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes import asking, pairs, questions, scene

# Of each pair: the role of the shape that is asked for, and whether the picture
# is the changed one.
ASKED = (
  *(("contextual", False), ("absent", False), ("absent", False)),
  *(("contextual", True), ("absent", True), ("absent", True)),
  ("counterfactual", True),
)
# Scenes by which it is counted what occurs together.
_COUNTED = 2000
# Draws of a pair, apart from those of its scene.
_PURPOSE = 4


class Counterfactuals(World):
  """Whether a shape is there, asked before and after another is replaced.

  Seven questions a pair of scenes, one after the other, as Causal-HalBench
  (arXiv 2511.10268) asks: for a shape that stays and for two that are in
  neither, of both, and for the one that was put in. It is seldom with the
  shape that stays, by scenes for training that have the same `cooccurrence`.
  All other pixels of both pictures are equal.

  `extra` has "causal": name of the original picture, name of the one that is
  shown, role of the shape, and the question; and "scenes", the one that is
  shown.

  Attributes:
    options: how scenes are made.
  """

  def __init__(
    self,
    *,
    split: str,
    count: int,
    seed: int = 0,
    size: int = palette.SIDE,
    cooccurrence: scene.Matrix | None = None,
    counted: scene.Matrix | None = None,
    prompt: str = "{question}",
  ):
    """Checks the options; pairs are made when they are asked for.

    Args:
      split: "train", "validation", "test" or "novel".
      count: number of questions; the last pair may lack some.
      seed: another seed gives other pairs of the split.
      size: side of pictures, a multiple of 112.
      cooccurrence: weights of what is together in the original scenes; see
        Scenes.
      counted: weights of the scenes by which it is counted what occurs
        together; those of `cooccurrence` if None.
      prompt: text of the user's turn, with "{question}" in it.

    Raises:
      UserError: if an option has no such value.
    """
    matrix = cooccurrence if counted is None else counted
    self.options = asking.Options(
      split=split,
      kinds=("describe",),
      seed=seed,
      size=size,
      cooccurrence=cooccurrence,
    )
    self._known = asking.Options(
      split="train", kinds=("describe",), seed=seed, cooccurrence=matrix
    )
    super().__init__(f"counterfactuals/{split}/{seed}", count, prompt)

  @functools.cached_property
  def counts(self) -> Any:
    """How often shapes are together in scenes for training, [8, 8]."""
    scenes = (asking.apart(self._known, i) for i in range(_COUNTED))
    return scene.cooccurrence(scenes)

  def pair(self, number: int) -> pairs.Intervention:
    """Returns a pair of scenes by its number."""
    drawn = asking.apart(self.options, number)
    split = scene.SPLITS.index(self.options.split)
    draws = Draws(self.options.seed, split, number, _PURPOSE)
    return pairs.intervene(drawn, draws, self.counts)

  def _asked(self, index: int) -> tuple[str, bool, str, scene.Scene, str]:
    """Returns role, whether it is changed, question, scene and answer."""
    number, which = divmod(index, len(ASKED))
    role, changed = ASKED[which]
    found = self.pair(number)
    shape = {
      "contextual": found.context,
      "absent": found.absent[which % 3 - 1],
      "counterfactual": found.inserted,
    }[role]
    shown = found.changed if changed else found.scene
    question = questions.Question("exists", (shape, ""))
    right = questions.answer(question, [shown])
    assert right is not None
    return role, changed, question.text, shown, right

  def __getitem__(self, index: int) -> Example:
    index = self._at(index)
    role, changed, text, shown, right = self._asked(index)
    original = self._original(index)
    picture = f"{original}_001" if changed else original
    part = {"type": "image", "image": scene.render(shown)}
    return Example(
      name=self._name(index),
      question=text,
      messages=ask(text, self._prompt, [part]),
      answer=right,
      kind=role,
      extra={"causal": (original, picture, role, text), "scenes": (shown,)},
    )

  def originals(self) -> Iterator[str]:
    """Yields the original picture of every question."""
    return map(self._original, range(len(self)))

  def _original(self, index: int) -> str:
    return f"{self._root}/{index // len(ASKED)}"

  def _told(self, index: int) -> tuple[str, str, Sequence[str]]:
    _, _, text, _, right = self._asked(index)
    return text, right, ()
