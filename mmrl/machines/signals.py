"""Signals that stop a run: SIGTERM, which clouds send, and ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

# Exit status of a run that was stopped from outside and resumes when the same
# command is run again; EX_TEMPFAIL of sysexits.h.
RESTART = 75
# That of a run that was ended at once, as shells report ctrl-C.
AT_ONCE = 130
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "ctrl-C"}
_ABANDONED = threading.Lock()
# Seconds after which an exception is raised again that went nowhere.
_AGAIN = 0.1


class Preempted(BaseException):
  """A run was told to stop, and what it has trained is saved.

  Like `KeyboardInterrupt` it may be raised anywhere and is nobody's error: code
  that explains why a checkpoint can't be written doesn't catch it.
  """


class Termination:
  """Handler of both signals while a run goes on.

  A step that has begun is finished; whatever else runs is interrupted at once.
  A second SIGTERM changes nothing, a second ctrl-C raises `KeyboardInterrupt`.
  """

  def __init__(self):
    self._asked: int | None = None
    self._interrupted = self.in_step = self._lost = False

  def _handle(self, number, frame) -> None:
    del frame
    again = self._interrupted and number == signal.SIGINT
    self._interrupted |= number == signal.SIGINT
    if again:
      raise KeyboardInterrupt
    # Another signal must not disturb what the first has begun to end.
    if self._asked is None or self._lost:
      self._asked = self._asked or number
      self._lost = False
      if not self.in_step:
        self.leave(None)

  @property
  def asked(self) -> float:
    """1 if this process was told to stop, else 0."""
    return float(self._asked is not None)

  def leave(self, step: int | None) -> None:
    """Ends the run by an exception.

    Raises:
      Preempted: always.
    """
    self.in_step = False
    done = "" if step is None else f" after step {step}, which is saved"
    # Where another process of the run was told, it was by SIGTERM.
    raise Preempted(_line(self._asked or signal.SIGTERM, done))

  def __enter__(self) -> "Termination":
    self._before = _set(self._handle)
    self._hook, sys.unraisablehook = sys.unraisablehook, self._ignored
    return self

  def __exit__(self, *_) -> None:
    sys.unraisablehook = self._hook
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ignored(self, found) -> None:
    """Takes what is raised where nothing can be raised, as in a finaliser.

    A signal that comes there would be lost: it is sent again. By SIGTERM, as a
    second ctrl-C would end the process at once.
    """
    if not isinstance(found.exc_value, Preempted):
      self._hook(found)
      return
    self._lost = True
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()


def at_once() -> None:
  """Lets either signal end this process, with status `RESTART`.

  For the time before `Termination` and after it: there is nothing to save while
  a command imports what it needs.
  """
  _set(_end)


def watch() -> None:
  """Lets a second ctrl-C end this process at once, whatever it is doing.

  Python calls handlers between two of its own instructions. A compilation, or a
  disk that doesn't answer, holds them up and makes one signal of two; a thread
  that reads a byte for each doesn't wait.
  """
  ours, theirs = os.pipe()
  os.set_blocking(theirs, False)
  signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
  threading.Thread(target=_count, args=(ours,), daemon=True).start()


def _count(pipe: int) -> None:
  interrupts = 0
  while interrupts < 2:
    interrupts += os.read(pipe, 1)[0] == signal.SIGINT
  abandon()


def abandon() -> NoReturn:
  """Ends this process as a second ctrl-C does, from whichever thread is first.

  What is still running isn't waited for.
  """
  with _ABANDONED:
    os.write(
      2,
      b"ended at once by a second ctrl-C; the same command goes on from the"
      b" newest checkpoint\n",
    )
    os._exit(AT_ONCE)


def _set(handler) -> dict:
  """Sets a handler; what this process was started to ignore stays ignored."""
  return {
    number: signal.signal(number, handler)
    for number in _NAMES
    if signal.getsignal(number) is not signal.SIG_IGN
  }


def _end(number, frame) -> None:
  del frame
  with contextlib.suppress(RuntimeError):  # interrupted while it prints
    sys.stdout.flush()
  os.write(2, f"{_line(number)}\n".encode())
  os._exit(RESTART)


def _line(number: int, done: str = "") -> str:
  name = _NAMES[signal.Signals(number)]
  return f"stopped by {name}{done}; the same command goes on from there"
