"""What a run prints while it goes on: phases, steps, and no long silence.

At most one console is open in a process: the first process of a run opens it.
Where none is, as when a part of the library is called by itself, the functions
here print nothing.
"""

import collections
from collections.abc import Iterator
import contextlib
import statistics
import threading
import time

import jax
import tqdm

from mmrl import errors
from mmrl.machines import compilation

# Longest time without a line.
SILENCE_SECONDS = 10.0
# Steps whose median is the pace of a run.
_RECENT = 20
_opened: "list[Console]" = []
_listening: list[bool] = []


def span(seconds: float) -> str:
  """Formats a time in its own unit."""
  if seconds < 120:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
  minutes = seconds / 60
  return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


class Console:
  """Lines of a run on stdout, and a thread that breaks a long silence.

  To be used in a `with` block, which the thread doesn't outlive. In it, the
  functions of this module print.
  """

  def __init__(self):
    self.compile_seconds, self.compiled = 0.0, 0
    self._lock = threading.RLock()
    self._said = time.monotonic()
    self._doing: list[tuple[str, float]] = []
    self._program: tuple[str, float] | None = None
    self._bar: tqdm.tqdm | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Console":
    if not _listening:
      # JAX has no way to remove a listener: there is one for all runs.
      jax.monitoring.register_event_duration_secs_listener(_listen)
      _listening.append(True)
    _opened.append(self)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    _opened.remove(self)
    self._ended.set()
    self._thread.join()

  def say(self, line: str) -> None:
    """Prints a line, above a bar if there is one."""
    with self._lock:
      self._said = time.monotonic()
      with tqdm.tqdm.external_write_mode():
        errors.say(line)

  @contextlib.contextmanager
  def doing(self, title: str) -> Iterator[None]:
    """Names what is done in the block, for a line in a long silence."""
    entry = title, time.monotonic()
    self._doing.append(entry)
    try:
      yield
    finally:
      self._doing.remove(entry)

  def compiles(self, name: str) -> None:
    """Is told that the compilation of a program begins."""
    self._program = f"compiling {name}", time.monotonic()

  def has_compiled(self, name: str, seconds: float) -> None:
    """Is told that a program is compiled."""
    self._program = None
    self.compile_seconds += seconds
    self.compiled += 1
    if seconds >= compilation.SHOWN_SECONDS:
      self.say(f"compiling {name} ... {span(seconds)}")

  @contextlib.contextmanager
  def bar(self, first: int, last: int) -> Iterator[tqdm.tqdm]:
    """Shows a bar of steps, in a terminal."""
    form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"
    with tqdm.tqdm(
      total=last, initial=first, bar_format=form, disable=None
    ) as shown:
      self._bar = None if shown.disable else shown
      try:
        yield shown
      finally:
        self._bar = None

  def move(self, bar: tqdm.tqdm, text: str) -> None:
    """Moves the bar by a step, with a text behind it."""
    with self._lock:
      self._said = time.monotonic()
      bar.set_postfix_str(text, refresh=False)
      bar.update()
      bar.refresh()

  def silent(self) -> bool:
    """Tells whether the last line is so long ago that one is due."""
    return time.monotonic() - self._said >= SILENCE_SECONDS

  def _watch(self) -> None:
    while not self._ended.wait(self._pause()):
      with self._lock:
        bar = self._bar
        if not self.silent() or self._ended.is_set():
          continue
        doing = self._now()
        if bar is None:
          self.say(f"{doing} so far")
        else:
          # A bar isn't scrolled away by lines: it says so itself.
          numbers = str(bar.postfix or "").partition(" | ")[0]
          bar.set_postfix_str(f"{numbers} | {doing}")

  def _pause(self) -> float:
    """Returns the seconds until a line may be due."""
    if self._bar is not None:
      return 1.0
    return max(self._said + SILENCE_SECONDS - time.monotonic(), 0.01)

  def _now(self) -> str:
    """Says what is done, and for how long."""
    doing = list(self._doing)
    program = self._program
    last = program or (doing[-1] if doing else ("working", self._said))
    return f"{last[0]} ... {span(time.monotonic() - last[1])}"


def _listen(event: str, duration_secs: float, **about) -> None:
  """Takes JAX's events: a program is compiled once its module is made."""
  for console in _opened:
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
      console.compiles(compilation.name_of(about))
    elif event == compilation.EVENT:
      console.has_compiled(compilation.name_of(about), duration_secs)


def say(line: str) -> None:
  """Prints a line, if a console is open."""
  for console in _opened:
    console.say(line)


@contextlib.contextmanager
def doing(title: str) -> Iterator[None]:
  """Names what is done in the block, for a line in a long silence.

  Also a decorator of a function, as `phase`.
  """
  with contextlib.ExitStack() as stack:
    for console in _opened:
      stack.enter_context(console.doing(title))
    yield


@contextlib.contextmanager
def phase(title: str) -> Iterator[None]:
  """Names what is done in the block, and prints how long it has taken."""
  began = time.monotonic()
  with doing(title):
    yield
  say(f"{title} ... {span(time.monotonic() - began)}")


class Steps:
  """Progress of a run's steps: a bar in a terminal, lines elsewhere."""

  def __init__(self, first: int, last: int, console: Console, bar: tqdm.tqdm):
    self._first, self._last = first, last
    self._console, self._bar = console, bar
    self._plain: collections.deque[float] = collections.deque(maxlen=_RECENT)
    self._others: collections.deque[float] = collections.deque(maxlen=_RECENT)
    self._compiled = console.compiled, console.compile_seconds

  def end(self, step: int, seconds: float, numbers: str) -> None:
    """Ends a step.

    Args:
      step: its number.
      seconds: that it took.
      numbers: what to show of it.
    """
    console = self._console
    count, spent = self._compiled
    self._compiled = console.compiled, console.compile_seconds
    if console.compiled == count:
      self._plain.append(seconds)
    else:
      self._others.append(max(seconds - console.compile_seconds + spent, 0.0))
    # Steps that compile count until there are others: tracing is in them.
    pace = statistics.median(self._plain or self._others)
    left = span(pace * (self._last - step))
    text = f"{span(pace)} a step, {left} left; {numbers}"
    if not self._bar.disable:
      console.move(self._bar, text)
    elif step in (self._first + 1, self._last) or console.silent():
      console.say(f"step {step} of {self._last}, {text}")


@contextlib.contextmanager
def steps(first: int, last: int) -> Iterator[Steps | None]:
  """Shows the progress of steps after `first` up to `last`; None if it can't.

  What is left is the median of the last steps without compilation, times the
  number of steps.
  """
  if not _opened:
    yield None
    return
  console = _opened[-1]
  with console.bar(first, last) as bar:
    yield Steps(first, last, console, bar)
