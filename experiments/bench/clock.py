"""Timings and memory of a program that is already compiled."""

from collections.abc import Callable
import os
import statistics
import threading
import time

import jax


def seconds(function: Callable, *arguments, repeats: int) -> float:
  """Median time of a call, after one that isn't counted."""
  return in_turn({"": lambda: function(*arguments)}, repeats)[""]


def in_turn(programs: dict[str, Callable[[], object]], repeats: int):
  """Median times of programs that are run one after the other, in turn."""
  found = {name: [] for name in programs}
  for _ in range(repeats + 1):
    for name, program in programs.items():
      began = time.perf_counter()
      jax.block_until_ready(program())
      found[name].append(time.perf_counter() - began)
  return {name: statistics.median(times[1:]) for name, times in found.items()}


def resident() -> int:
  """Bytes of memory that this process holds now (Linux)."""
  with open("/proc/self/statm", encoding="ascii") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
  """Most memory that the process holds inside the `with`, sampled.

  Attributes:
    start, most: bytes at the beginning, and at most.
  """

  def __enter__(self):
    self.start = self.most = resident()
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._sample, daemon=True)
    self._thread.start()
    return self

  def _sample(self):
    while not self._end.wait(0.002):
      self.most = max(self.most, resident())

  def __exit__(self, *_):
    self._end.set()
    self._thread.join()
    self.most = max(self.most, resident())

  @property
  def over_start(self) -> int:
    return self.most - self.start
