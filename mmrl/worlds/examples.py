"""Examples of each world for a sheet, and samples for its baselines."""

from collections.abc import Callable, Sequence
import dataclasses

from mmrl.worlds.figures import asking as figure_asking
from mmrl.worlds.figures import faults
from mmrl.worlds.items import Asked
from mmrl.worlds.kitchens import asking as kitchen_asking
from mmrl.worlds.kitchens import drawing
from mmrl.worlds.kitchens import questions as kitchen_questions
from mmrl.worlds.palette import Box, check_one_of
from mmrl.worlds.scenes import asking, questions, scene
from mmrl.worlds.sheet import Panel

_FRAMES = 7  # Of a video, after the one that the question points at.


def _scene_options(split: str) -> asking.Options:
  return asking.Options(split=split, kinds=[*questions.KINDS])


def _scene_panel(split: str, index: int) -> Panel:
  item = asking.item(_scene_options(split), index)
  boxes: list[list[Box]] = [[] for _ in item.scenes]
  for picture, i in questions.relevant(item.question, item.scenes):
    boxes[picture].append(item.scenes[picture].things[i].box)
  shown = [scene.render(one) for one in item.scenes]
  return Panel(shown, boxes, f"{item.question.text}\n= {item.answer}")


def _scene_asked(split: str, index: int) -> Asked:
  return asking.item(_scene_options(split), index).asked


def _kitchen(split: str, index: int) -> kitchen_asking.Item:
  options = kitchen_asking.Options(split, kitchen_questions.KINDS)
  return kitchen_questions.item(options, index)


def _kitchen_panel(split: str, index: int) -> Panel:
  item = _kitchen(split, index)
  last = drawing.times(item.kitchen, 2.0)[-1]
  # Ends of events, where something has just changed.
  ends = [event.end for event in item.kitchen.events if event.end <= last]
  step = max(1, -(-len(ends) // (_FRAMES - 1)))
  times = [item.time, 0.0, *ends[::step]][: _FRAMES + 1]
  shown = [drawing.frame(item.kitchen, time) for time in times]
  boxes = [[item.box] if item.box else [], *([] for _ in times[1:])]
  stamps = " ".join(f"{time:.1f}" for time in times)
  choices = "   ".join(item.text.split("\n")[1:])
  text = f"{item.question}\n{choices}\n= {item.letter} (frames at {stamps} s)"
  return Panel(shown, boxes, text)


def _figure_panel(split: str, index: int) -> Panel:
  pair = figure_asking.pair(0, split, index)
  boxes = [
    [faults.fault_box(one, i) for i in range(len(one.faults))]
    for one in pair.frames
  ]
  shown = [faults.render(one) for one in pair.frames]
  times = [0.25, 1.0, 1.75, 2.5, 3.75]
  shown += [faults.render(pair.clips[0].at(time)) for time in times]
  labels = [", ".join(figure_asking.labels(one)) for one in pair.frames]
  text = "\n".join(
    [
      f"{pair.prompt} Preferred: {pair.preference}. Then A's clip at"
      f" {', '.join(map(str, times))} s.",
      *(
        f"{side}: {label}; {score}"
        for side, label, score in zip("AB", labels, pair.scores, strict=True)
      ),
    ]
  )
  return Panel(shown, [*boxes, *([] for _ in times)], text)


@dataclasses.dataclass(frozen=True)
class World:
  """World as a sheet and a table of baselines read it.

  Attributes:
    splits: that it has.
    panel: (split, index) -> an example.
    asked: (split, index) -> a question without its picture.
    kinds: number of kinds of questions, which items take in turn.
    columns, count: of the sheet.
  """

  splits: Sequence[str]
  panel: Callable[[str, int], Panel]
  asked: Callable[[str, int], Asked]
  kinds: int
  columns: int
  count: int


WORLDS = {
  "scenes": World(
    scene.SPLITS, _scene_panel, _scene_asked, len(questions.KINDS), 3, 27
  ),
  "kitchens": World(
    kitchen_asking.SPLITS,
    _kitchen_panel,
    lambda split, index: _kitchen(split, index).asked,
    len(kitchen_questions.KINDS),
    1,
    14,
  ),
  "figures": World(
    figure_asking.SPLITS,
    _figure_panel,
    lambda split, index: figure_asking.item(0, split, index).asked,
    1,
    1,
    12,
  ),
}


def world(name: str, split: str) -> World:
  """Returns a world that has a split.

  Raises:
    UserError: if there is no such world or split.
  """
  check_one_of("world", name, [*WORLDS])
  check_one_of("split", split, WORLDS[name].splits)
  return WORLDS[name]
