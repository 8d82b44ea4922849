"""What a run prints: phases, steps, and a thread that breaks silences."""

import importlib
import io
import logging
import sys
import time

import jax
import pytest

from mmrl import console, errors


@pytest.fixture
def opened():
  with console.Console() as found:
    yield found
  assert not found._thread.is_alive()


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.04, "0.0 s"),
    (3.44, "3.4 s"),
    (9.96, "10 s"),
    (119.0, "119 s"),
    (600.0, "10 min"),
    (9000.0, "2.5 h"),
  ],
)
def test_spans(seconds, text):
  assert console.span(seconds) == text


def test_nothing_is_said_where_no_console_is_open(capsys):
  with console.phase("reading"), console.steps(0, 3) as steps:
    console.say("a line")
  assert steps is None and capsys.readouterr().out == ""


def test_a_phase_is_a_line_unless_it_fails(opened, capsys):
  with console.phase("reading"), console.doing("a part of it"):
    pass
  with pytest.raises(ValueError), console.phase("writing"):
    raise ValueError
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("reading ... ") and line.endswith(" s")
  assert not opened._doing


def test_a_silence_is_broken_and_an_error_ends_that(monkeypatch, capsys):
  """The line says what is done innermost, compiling before all."""
  monkeypatch.setattr(console, "SILENCE_SECONDS", 0.02)
  said = []
  opened = console.Console()

  def heard(text):
    said.append(capsys.readouterr().out)
    return text in "".join(said)

  with pytest.raises(ValueError), opened:
    wait_for(lambda: heard("working ... "))
    with console.phase("reading"), console.doing("a part"):
      wait_for(lambda: heard("a part ... 0.0 s so far\n"))
      opened.compiles("update")
      wait_for(lambda: heard("compiling update ... 0.0 s so far\n"))
      opened.has_compiled("update", 0.5)
    raise ValueError
  assert not opened._thread.is_alive() and not console._opened
  assert "compiling update ... 0.5 s\n" not in "".join(said), "too short"


def test_a_program_is_said_once_it_is_compiled(opened, capsys, monkeypatch):
  monkeypatch.setattr(console.compilation, "SHOWN_SECONDS", 0.0)
  began = []
  compiles = opened.compiles
  monkeypatch.setattr(
    opened, "compiles", lambda name: (began.append(name), compiles(name))
  )

  def one_of_its_own(x):
    return x + 1

  jax.jit(one_of_its_own)(1.0)
  assert "compiling one_of_its_own ... " in capsys.readouterr().out
  assert "one_of_its_own" in began and opened._program is None


def test_what_is_left_leaves_compiling_out(opened, capsys):
  """Until a step didn't compile, what compiling took is subtracted."""
  with console.steps(2, 12) as steps:
    opened.has_compiled("update", 90.0)
    steps.end(3, 100.0, "reward 0.50")
    opened.has_compiled("update", 3.0)
    steps.end(4, 7.0, "not shown: too soon after the line before")
    for step in range(5, 12):
      steps.end(step, 30.0 if step == 9 else 2.0, "")
    steps.end(12, 2.0, "reward 0.75")
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith("step")] == [
    "step 3 of 12, 10 s a step, 90 s left; reward 0.50",
    "step 12 of 12, 2.0 s a step, 0.0 s left; reward 0.75",
  ]


@pytest.mark.full
def test_a_terminal_has_a_bar(opened, monkeypatch, capsys):
  """And no lines of steps; what takes long is said behind the bar."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  monkeypatch.setattr(console, "SILENCE_SECONDS", 0.02)
  with console.steps(0, 4) as steps, console.doing("collecting"):
    steps.end(1, 2.0, "reward 0.50")
    assert "1/4 steps, 2.0 s a step, 6.0 s left; reward" in terminal.getvalue()
    console.say("a line")
    wait_for(lambda: "reward 0.50 | collecting ... " in terminal.getvalue())
  assert capsys.readouterr().out == "a line\n"


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
  """A model's answer may have any character, or half of one."""
  raw = io.BytesIO()
  for encoding in ("ascii", "utf-8"):
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    errors.say("é\ud800")
    stream.detach()
  assert raw.getvalue() == b"\\xe9\\ud800\n" + "é\\ud800\n".encode()


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("PyTorch was not found. Models won't be available and only", False),
    ("another warning", True),
  ],
)
def test_transformers_does_not_warn_of_pytorch(text, shown):
  """Whatever else it says is shown."""
  importlib.import_module("mmrl.prompts")
  logger = logging.getLogger("transformers")
  record = logger.makeRecord(
    logger.name, logging.WARNING, __file__, 1, text, (), None
  )
  assert bool(logger.filter(record)) == shown
