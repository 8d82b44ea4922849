"""What signals do to a command, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time

import pytest
import runs

from mmrl.machines import signals

# A command that does as a run does, in a second instead of a minute.
COMMAND = """
import sys, time
from mmrl.machines import signals
signals.at_once()
from mmrl import commands

def say(text):
  print(text, flush=True)

def hold():
  # A call of C, as a compilation is: handlers wait, other threads don't.
  import ctypes
  mutex = ctypes.create_string_buffer(64)
  lock = ctypes.CDLL(None).pthread_mutex_lock
  lock(mutex)
  say("held")
  lock(mutex)

def main():
  from mmrl.machines import signals
  with signals.Termination() as termination:
    if MODE == "outside":
      say("held")
      time.sleep(60)
    for step in range(1, 1000):
      termination.in_step = True
      if MODE == "blocked":
        hold()
      say(f"step {step}")
      end = time.monotonic() + 0.3
      while time.monotonic() < end:
        time.sleep(0.01)
      say("saved")
      if termination.asked:
        termination.leave(step)
      termination.in_step = False

if MODE == "imports":
  say("held")
  time.sleep(60)
commands.run(main, required=(), resumes=True)
"""
BOTH = pytest.mark.parametrize(
  ("number", "name"),
  [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "ctrl-C")],
  ids=["term", "int"],
)


def start(mode, *command):
  with runs.heard():
    return subprocess.Popen(
      [sys.executable, *(command or ("-c", f"MODE = {mode!r}\n{COMMAND}"))],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )


def until(process, text):
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(process.stderr.read())


def ended(process):
  """Its status, and the rest of what it has printed."""
  out, err = process.communicate(timeout=120)
  assert "Traceback" not in err, err
  return process.returncode, out, err


@pytest.mark.full
@BOTH
@pytest.mark.parametrize("mode", ["imports", "outside"])
def test_outside_of_steps_it_ends_at_once(mode, number, name):
  process = start(mode)
  until(process, "held")
  process.send_signal(number)
  status, _, err = ended(process)
  assert status == signals.RESTART
  assert err == f"stopped by {name}; the same command goes on from there\n"


@pytest.mark.full
@BOTH
def test_a_step_is_finished(number, name):
  process = start("steps")
  until(process, "step 2")
  process.send_signal(number)
  process.send_signal(signal.SIGTERM)  # changes nothing
  status, out, err = ended(process)
  assert status == signals.RESTART and out == "saved\n"
  assert err == (
    f"stopped by {name} after step 2, which is saved; the same command goes on"
    " from there\n"
  )


@pytest.mark.full
@pytest.mark.parametrize("mode", ["steps", "blocked"])
def test_a_second_one_from_the_keyboard_ends_at_once(mode):
  """Though the first one's handler can't run yet."""
  process = start(mode)
  until(process, "held" if mode == "blocked" else "step 1")
  process.send_signal(signal.SIGINT)
  time.sleep(0.1)  # else the system makes one of two that are alike
  process.send_signal(signal.SIGINT)
  status, _, err = ended(process)
  assert status == signals.AT_ONCE
  assert "ended at once by a second ctrl-C" in err


def test_what_is_to_be_ignored_is_ignored():
  """As of a run that a script has started in the background, or nohup."""
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with signals.Termination() as termination:
      os.kill(os.getpid(), signal.SIGINT)
      assert not termination.asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


def test_handlers_are_given_back():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  with pytest.raises(signals.Preempted), signals.Termination():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
  after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  assert before == after


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_a_finaliser_it_is_not_lost(number):
  """Python ignores exceptions there."""

  class Told:
    def __del__(self):
      signal.raise_signal(number)

  told, before = Told(), sys.unraisablehook
  with pytest.raises(signals.Preempted) as ended, signals.Termination():
    del told
    time.sleep(10)
  assert signals._NAMES[number] in str(ended.value)
  assert sys.unraisablehook is before


def test_a_notebook_gets_its_interrupt():
  """The second time; the first one lets the step end."""
  with pytest.raises(KeyboardInterrupt), signals.Termination() as termination:
    termination.in_step = True
    os.kill(os.getpid(), signal.SIGINT)
    assert termination.asked
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


@pytest.mark.full
@BOTH
def test_a_run_in_its_first_second(tmp_path, number, name):
  """While it imports, builds and compiles."""
  folder = runs.make_folder(tmp_path)
  for wait in (0.2, 0.5, 1.0, 2.0, 4.0):
    process = start(
      "",
      *("-m", "mmrl.train"),
      f"--config={folder / 'config.py'}",
      f"--workdir={tmp_path / 'run'}",
    )
    time.sleep(wait)
    process.send_signal(number)
    status, _, err = ended(process)
    assert status == signals.RESTART, (wait, err)
    assert err.count(f"stopped by {name}") == 1, err
