"""Items a second of each world, on one core: as data, and drawn at 112 pixels.

  python -m experiments.bench.worlds

Each is made once before it is timed; the processor's time of the process is
counted, not what others leave of it.
"""

from collections.abc import Callable
import time

from mmrl.worlds.figures import asking as figure_asking
from mmrl.worlds.figures import faults
from mmrl.worlds.kitchens import asking as kitchen_asking
from mmrl.worlds.kitchens import drawing
from mmrl.worlds.kitchens import questions as kitchen_questions
from mmrl.worlds.scenes import asking, questions, scene

_SECONDS = 3.0


def rate(make: Callable[[int], object]) -> float:
  """Calls a second of `make` on successive indices."""
  make(0)
  began, count = time.process_time(), 0
  while time.process_time() < began + _SECONDS:
    make(count)
    count += 1
  return count / (time.process_time() - began)


def main() -> None:
  """Prints the rates."""
  kinds = tuple(kind for kind in questions.KINDS if kind != "several")
  scenes = asking.Options(kinds=kinds)
  kitchens = kitchen_asking.Options("train", kitchen_questions.KINDS)

  def drawn_kitchen(index: int) -> object:
    one = kitchen_questions.item(kitchens, index).kitchen
    return drawing.frames(one, kitchens.fps)

  def drawn_scene(index: int) -> object:
    return scene.render(asking.item(scenes, index).scenes[0])

  rows: dict[str, Callable[[int], object]] = {
    "scenes, questions as data": lambda i: asking.item(scenes, i),
    "scenes, drawn": drawn_scene,
    "kitchens, questions as data": lambda i: kitchen_questions.item(
      kitchens, i
    ),
    "kitchens, videos drawn": drawn_kitchen,
    "figures, frames as data": lambda i: figure_asking.item(0, "train", i),
    "figures, frames drawn": lambda i: faults.render(
      figure_asking.item(0, "train", i).figure
    ),
  }
  for name, make in rows.items():
    print(f"{name:30} {rate(make):9,.0f} / s")


if __name__ == "__main__":
  main()
