"""Pairs: preferred and rejected answers, pictures that differ in a thing."""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Int
import numpy as np

from mmrl.worlds.draws import Draws
from mmrl.worlds.scenes.questions import in_order, listed
from mmrl.worlds.scenes.scene import COLOURS, Kind, Scene, remove, replace
from mmrl.worlds.scenes.things import SHAPES


@dataclasses.dataclass(frozen=True)
class Preference:
  """An answer that is right, one that is wrong, and a picture without a thing.

  As AdaViP (arXiv 2504.15619) compares them: the wrong answer to the right
  picture, and the right answer to the wrong picture.

  Attributes:
    chosen: lists what is in the picture.
    rejected: the same with one thing that isn't there in the place of one that
      is.
    absent: what is named wrongly: shape and colour.
    candidates: the picture without each of its things.
    kept: share of the chosen answer's words for things that still hold in each
      candidate, in [0, 1].
    removed: the candidate to take: the one that keeps least, the first of
      several.
  """

  chosen: str
  rejected: str
  absent: Kind
  candidates: tuple[Scene, ...]
  kept: tuple[float, ...]
  removed: int

  @property
  def without(self) -> Scene:
    """The picture to compare with."""
    return self.candidates[self.removed]


def prefer(
  scene: Scene,
  draws: Draws,
  counts: Int[np.ndarray, "8 8"] | None = None,
) -> Preference:
  """Makes a preference about what is in a scene of at least two things.

  Args:
    scene: its things have different shapes, or a removal might not tell.
    draws: of the item.
    counts: how often shapes are together. Then the shape that is named wrongly
      is the absent one that is most often with those that are there; a random
      one without.
  """
  right = [(thing.shape, thing.colour) for thing in in_order(scene)]
  shapes = {shape for shape, _ in right}
  absent = [s for s in SHAPES if s not in shapes]
  if counts is not None:
    there = [SHAPES.index(s) for s in shapes]
    most = max(counts[SHAPES.index(s), there].sum() for s in absent)
    absent = [s for s in absent if counts[SHAPES.index(s), there].sum() == most]
  wrong = draws.pick(absent), draws.pick(COLOURS)
  changed = list(right)
  changed[draws.below(len(right))] = wrong
  candidates = tuple(remove(scene, i) for i in range(len(scene.things)))
  kept = tuple(_kept(right, one) for one in candidates)
  removed = min(range(len(kept)), key=kept.__getitem__)
  return Preference(
    listed(right), listed(changed), wrong, candidates, kept, removed
  )


def _kept(named: Sequence[Kind], scene: Scene) -> float:
  there = {(thing.shape, thing.colour) for thing in scene.things}
  return sum(kind in there for kind in named) / len(named)


@dataclasses.dataclass(frozen=True)
class Intervention:
  """One thing replaced by one that is seldom with the others.

  As Causal-HalBench (arXiv 2511.10268) asks: for the contextual shape in both
  pictures (yes, yes), for the absent ones in both (no, no), and for the
  inserted one in the changed picture (yes).

  Attributes:
    scene, changed: the pictures before and after.
    index: the thing that is replaced.
    context: shape that is there and stays.
    inserted: shape that is put in.
    absent: shapes in neither: the one most often with the replaced shape, and
      a random one.
  """

  scene: Scene
  changed: Scene
  index: int
  context: str
  inserted: str
  absent: tuple[str, str]


def intervene(
  scene: Scene, draws: Draws, counts: Int[np.ndarray, "8 8"]
) -> Intervention:
  """Replaces a thing by one of a shape that is seldom with what stays.

  Args:
    scene: two to five things, of different shapes.
    draws: of the item.
    counts: how often shapes are together, as `scene.cooccurrence` counts.
  """
  shapes = [SHAPES.index(thing.shape) for thing in scene.things]
  index = draws.below(len(shapes))
  target, stay = shapes[index], shapes[:index] + shapes[index + 1 :]
  weights = [float(counts[target, s]) for s in stay]
  context = stay[
    draws.weighted(weights) if sum(weights) else draws.below(len(stay))
  ]
  free = [s for s in range(8) if s not in shapes]
  seldom = min(counts[context, s] for s in free)
  inserted = draws.pick([s for s in free if counts[context, s] == seldom])
  rest = [s for s in free if s != inserted]
  likely = max(rest, key=lambda s: counts[target, s])
  other = draws.pick([s for s in rest if s != likely])
  new = SHAPES[inserted], scene.things[index].colour
  return Intervention(
    scene,
    replace(scene, index, new),
    index,
    SHAPES[context],
    SHAPES[inserted],
    (SHAPES[likely], SHAPES[other]),
  )
