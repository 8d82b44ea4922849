"""Facts of a question to a chain of thought that is right in every line."""

from collections.abc import Mapping
from typing import Any

from mmrl.chains import parsing

# Steps of a chain, by task. The last three are chosen here.
TEMPLATES: dict[str, tuple[str, ...]] = {
  "fixture_interaction_counting": (
    *("entity identification", "task definition", "event enumeration"),
    "final synthesis",
  ),
  "fixture_location": (
    *("view initialisation", "target search", "spatial description"),
    "angle mapping",
  ),
  "object_location": (
    *("entity identification", "event anchoring", "temporal scan", "discovery"),
    *("fixture identification", "spatial landmark"),
  ),
  "object_movement_itinerary": (
    *("entity identification", "first sighting", "ordered moves"),
    *("chain check", "choice"),
  ),
  "object_movement_counting": (
    *("entity identification", "first sighting", "ordered moves"),
    *("chain check", "count"),
  ),
  "stationary_object_localization": (
    *("entity identification", "first move", "rest intervals"),
    *("duration test", "choice"),
  ),
}

# What is known of a question, by name. Times are seconds.
FACTS = {
  "names": "fixtures that a chain should name, as HD-EPIC names them",
  "windows": "(start, end) of events that a chain should give a time of",
  "words": "what is said of each event",
  "moves": "(from, to) of the thing's moves, in order, as people name them",
  "count": "the number that is asked for",
  "clock": "the hour, 1 to 12",
  "fixture": "the receiving or giving fixture, as HD-EPIC names it",
  "threshold": "seconds that a rest is to be longer than",
  "rest": "(start, end) of the rest that is right",
}

# Facts that the lines of a chain are written of, by task.
_NEEDED: dict[str, tuple[str, ...]] = {
  "fixture_interaction_counting": ("names", "windows", "words", "count"),
  "fixture_location": ("names", "clock"),
  "object_location": ("names", "windows", "words", "fixture"),
  "object_movement_itinerary": ("names", "windows", "moves"),
  "object_movement_counting": ("names", "windows", "moves", "count"),
  "stationary_object_localization": ("windows", "moves", "rest"),
}


def stamp(time: float | int) -> str:
  """Writes a time as HD-EPIC does, such as <TIME 00:01:9.5 video 1>."""
  tenths = round(10 * time)
  hours, rest = divmod(tenths, 36000)
  minutes, rest = divmod(rest, 600)
  return f"<TIME {hours:02}:{minutes:02}:{rest / 10:.1f} video 1>"


def lacking(task: str, facts: Mapping[str, Any]) -> list[str]:
  """Lists what facts lack to write a task's chain of them."""
  return [name for name in _NEEDED[task] if name not in facts]


def render_lines(task: str, facts: Mapping[str, Any]) -> str:
  """Writes the lines of a chain.

  Args:
    task: one of `TEMPLATES`.
    facts: those that `lacking` looks for, see `FACTS`.
  """
  moments = [
    stamp((start + end) / 2) for start, end in facts.get("windows", ())
  ]
  kinds = dict.fromkeys(map(parsing.plain, facts.get("names", ())))
  lines = [f"Entities: {', '.join(kinds)}"] if kinds else []
  if "moves" in facts:
    lines += [
      f"Move: {moment} from {start} to {end}"
      for moment, (start, end) in zip(moments, facts["moves"], strict=True)
    ]
  elif moments:
    lines += [f"Event: {moment} {facts['words']}" for moment in moments]
  if "fixture" in facts:
    lines.append(f"Fixture: {parsing.plain(facts['fixture'])}")
  if "count" in facts:
    lines.append(f"Count: {facts['count']}")
  if "clock" in facts:
    lines.append(f"Clock: {facts['clock']} o'clock")
  if "rest" in facts:
    lines.append(f"Rest: {' to '.join(map(stamp, facts['rest']))}")
  return "\n".join(lines)


def render_chain(task: str, facts: Mapping[str, Any], answer: str) -> str:
  """Writes a whole answer to learn from, instead of a teacher.

  Args:
    task, facts: see `render_lines`.
    answer: letter of the right option.
  """
  lines = render_lines(task, facts)
  return f"<think>{lines}</think><answer>{answer}</answer>"
