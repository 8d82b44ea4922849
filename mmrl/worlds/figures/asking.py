"""Clips and pairs of figures with labels, scores and chains, as REACT has them.

Splits: "train", "validation" and "test" share actions and looks; the phase of
a motion modulo 3 tells them apart. "novel" has actions that the others haven't.
So no split shares a frame with another.
"""

import dataclasses
import json

from jaxtyping import UInt8
import numpy as np

from mmrl.worlds import palette
from mmrl.worlds.draws import Draws
from mmrl.worlds.figures import faults
from mmrl.worlds.figures.faults import APART, CLEAN, FAULTS, LIMBS_OF
from mmrl.worlds.figures.figure import (
  ACTIONS,
  BESIDE,
  OTHER_ACTIONS,
  PHASES,
  SHIRTS,
  SKINS,
  TROUSERS,
  Fault,
  Figure,
)
from mmrl.worlds.items import Asked

SPLITS = ("train", "validation", "test", "novel")
SECONDS, FPS = 4.0, 4.0
# Weights of 0, 1, 2 and 3 faults of a generation.
_COUNTS = (2, 4, 3, 2)
QUESTION = (
  "This is a frame of a generated video. Which structural distortions does it"
  f" show, out of {', '.join(FAULTS)} or {CLEAN}, and which score does it have"
  " from 1 (bad) to 5 (good)?"
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """One generation of a prompt.

  Attributes:
    figure: at time 0, without faults.
    faults: what goes wrong.
    start, end: seconds; in [start, end) the faults are there.
  """

  figure: Figure
  faults: tuple[Fault, ...]
  start: float
  end: float

  def at(self, time: float) -> Figure:
    """Returns the figure at a time."""
    there = self.faults if self.start <= time < self.end else ()
    return dataclasses.replace(self.figure, time=time, faults=there)

  def frames(
    self, fps: float = FPS, size: int = palette.SIDE
  ) -> UInt8[np.ndarray, "frames h w 3"]:
    """Draws the clip."""
    times = [i / fps for i in range(int(SECONDS * fps))]
    return np.stack([faults.render(self.at(t), size) for t in times])


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two generations of one prompt, at equal times.

  Attributes:
    prompt: what both show.
    clips: A and B.
    time: seconds of the frames that are compared.
    preference: "A", "B" or "tie": the one with fewer faults at that time.
    scores: of both, by REACT's rule for pseudo-scores.
  """

  prompt: str
  clips: tuple[Clip, Clip]
  time: float
  preference: str
  scores: tuple[float, float]

  @property
  def frames(self) -> tuple[Figure, Figure]:
    """The figures that are compared."""
    return self.clips[0].at(self.time), self.clips[1].at(self.time)


def clip(seed: int, split: str = "train", index: int = 0) -> Clip:
  """Makes a clip: a pure function of seed, split and index."""
  draws = Draws(seed, SPLITS.index(split), index)
  return _clip(draws, *_prompt(draws, split), split)


def pair(seed: int, split: str = "train", index: int = 0) -> Pair:
  """Makes two generations of one prompt: a function of seed, split and index.

  The frames are from times when both clips have what faults they have, so that
  ties are as frequent as equal counts are.
  """
  draws = Draws(seed, SPLITS.index(split), index)
  action, beside = _prompt(draws, split)
  clips = tuple(_clip(draws, action, beside, split) for _ in "AB")
  time = draws.between(6, 9) / FPS
  counts = [len(one.at(time).faults) for one in clips]
  preference = ("A", "tie", "B")[int(np.sign(counts[0] - counts[1])) + 1]
  scores = tuple(pseudo_score(count, draws) for count in counts)
  return Pair(
    f"A person {_VERBS[action]} beside a {beside}.",
    clips,  # type: ignore[arg-type]
    time,
    preference,
    scores,  # type: ignore[arg-type]
  )


_VERBS = {
  **{"walk": "walks", "wave": "waves", "stretch": "stretches"},
  **{"dance": "dances", "kick": "kicks", "bow": "bows"},
}


def _prompt(draws: Draws, split: str) -> tuple[str, str]:
  actions = OTHER_ACTIONS if split == "novel" else ACTIONS
  return draws.pick(actions), draws.pick(BESIDE)


def _clip(draws: Draws, action: str, beside: str, split: str) -> Clip:
  if split == "novel":
    phase = draws.below(PHASES)
  else:
    phase = 3 * draws.below(PHASES // 3) + SPLITS.index(split)
  figure = Figure(
    action,
    phase,
    0.0,
    draws.below(len(SHIRTS)),
    draws.below(len(TROUSERS)),
    draws.below(len(SKINS)),
    draws.below(len(palette.GROUNDS)),
    beside,
  )
  start = draws.between(2, 6) / FPS
  end = draws.between(10, 14) / FPS
  return Clip(figure, _faults(draws, draws.weighted(_COUNTS)), start, end)


def _faults(draws: Draws, count: int) -> tuple[Fault, ...]:
  """Draws faults of different labels and limbs that don't hide each other."""
  found: list[Fault] = []
  while len(found) < count:
    label = draws.pick([*FAULTS])
    limb = draws.pick(LIMBS_OF[label]) if label in LIMBS_OF else ""
    labels = {fault.label for fault in found}
    hidden = any(label in two and labels & two for two in APART)
    # Blur would hide what is wrong with an arm.
    arms = [f.limb for f in found] + [limb]
    blurred = "motion blur" in {*labels, label}
    hidden |= blurred and any("arm" in one for one in arms)
    taken = bool(limb) and limb in [fault.limb for fault in found]
    if label not in labels and not hidden and not taken:
      found.append(Fault(label, limb, draws.unit()))
  # Where two change one part, the order matters: what is missing goes last.
  return tuple(sorted(found, key=lambda f: f.label == "missing limb"))


def pseudo_score(count: int, draws: Draws) -> float:
  """Draws a score by the number of faults, as REACT's SFT targets are.

  0 faults: from [4, 5]; 1: [3, 4]; 2: [2, 3]; more: [1, 2]; two decimals.
  """
  low = 4 - min(count, 3)
  return round(low + draws.below(101) / 100, 2)


def labels(figure: Figure) -> tuple[str, ...]:
  """Returns the labels of a frame, in the order of `FAULTS`; clean: one."""
  there = {fault.label for fault in figure.faults}
  return tuple(label for label in FAULTS if label in there) or (CLEAN,)


_SEEN = {
  "limb deformation": "The {limb} winds like a hose and is swollen.",
  "extra limb": "Beside the {limb} there is another one, so there are three.",
  "missing limb": "There is no {limb}.",
  "torso deformation": "The torso is pinched and bulges.",
  "facial deformation": "Eyes and mouth aren't where they belong on the face.",
  "non-animal collapse": "The {beside} has collapsed; its lines wind.",
  "motion blur": "Head and arms are smeared sideways.",
  "mesh penetration": "The {limb} goes through the torso.",
}


def chain(figure: Figure) -> str:
  """Writes what is seen in a frame, a sentence for each fault."""
  told = [
    _SEEN[fault.label].format(limb=fault.limb, beside=figure.beside)
    for fault in figure.faults
  ]
  whole = f"A person {_VERBS[figure.action]} beside a {figure.beside}."
  return " ".join([whole, *(told or ["Body, face and thing are whole."])])


@dataclasses.dataclass(frozen=True)
class Item:
  """A frame of a pair: items 2i and 2i + 1 are A and B of pair i."""

  pair: Pair
  side: int

  @property
  def figure(self) -> Figure:
    """The frame."""
    return self.pair.frames[self.side]

  @property
  def answer(self) -> str:
    """Labels and score as one JSON object."""
    score = self.pair.scores[self.side]
    return json.dumps({"labels": labels(self.figure), "score": score})

  @property
  def asked(self) -> Asked:
    """The question as one sees it who can't see the frame: for its labels."""
    right = ", ".join(labels(self.figure))
    return Asked("frame", QUESTION, right, (), 1 / LABEL_SETS)


# Sets of at most three of eight labels, the empty one among them.
LABEL_SETS = 1 + 8 + 28 + 56


def item(seed: int, split: str, index: int) -> Item:
  """Makes an item: a pure function of seed, split and index."""
  return Item(pair(seed, split, index // 2), index % 2)
