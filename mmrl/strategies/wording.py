"""Texts that strategies ask with: files of prompts/, with slots in braces."""

import functools
import importlib.resources
import re


@functools.cache
def _text(name: str) -> str:
  folder = importlib.resources.files("mmrl.strategies") / "prompts"
  return (folder / f"{name}.txt").read_text("utf-8").strip()


def fill(name: str, **slots: str) -> str:
  """Returns a text with its slots filled.

  What is filled in isn't looked through for slots again.

  Args:
    name: of the file, without its ending.
    **slots: what stands for each `{slot}` of the text.

  Raises:
    KeyError: if the text has a slot that isn't given, or lacks one that is.
  """
  text = _text(name)
  there = set(re.findall(r"\{(\w+)\}", text))
  if there != set(slots):
    raise KeyError(f"{name}.txt has slots {there}, given are {set(slots)}")
  return re.sub(r"\{(\w+)\}", lambda found: slots[found[1]], text)
