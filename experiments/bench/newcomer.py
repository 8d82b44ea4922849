"""What a new user does, timed. Prints every line that they see.

  python -m experiments.bench.newcomer [--quick]

Clones this repository into a temporary folder, makes a virtual environment
there, and runs what the README says: install, list and help of the commands,
the quick start, questions of one's own from the check to the third step (cold,
then with kept programs), evaluation, samples and export. Then come ten wrong
inputs, each of which must be one line and status 2, and leave nothing.

In front of each line are the seconds since its command began. At the end come
the seconds to each point and what was wrong; the exit status is 1 if something
was. With --quick the environment is this one, kept programs and XLA's flags
included, and sizes are tiny: that is a test of the full suite, and no measure.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
QUESTIONS, SIDE, STEPS = 40, 128, 3
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
# What --quick adds to a command that trains or evaluates.
TINY = (
  "--config.train.steps=3",
  "--config.rollout.prompts=4",
  "--config.rollout.answers=2",
  "--config.rollout.length=6",
  "--config.train.minibatches=2",
  "--config.evaluation.benchmarks.test.questions=4",
  "--config.evaluation.batch=4",
  "--config.evaluation.shown=1",
  "--config.shares.every=0",
)
# Working directories of runs that are refused: a new one, and another run's.
REFUSED = "refused", "cold"
_SECONDS = 3600.0


@dataclasses.dataclass
class Trial:
  """A user's clone and environment, and what they have seen.

  Attributes:
    clone: folder that commands run in.
    python: of the environment.
    folder: for all that commands write.
    quick: whether sizes are tiny.
    times: seconds to each point, by its name.
    wrong: what wasn't as it should be.
  """

  clone: pathlib.Path
  python: str
  folder: pathlib.Path
  quick: bool
  times: dict[str, float] = dataclasses.field(default_factory=dict)
  wrong: list[str] = dataclasses.field(default_factory=list)

  def run(
    self,
    name: str,
    *command: str,
    until: Callable[[], bool] | None = None,
  ) -> list[str]:
    """Runs a command to its end and prints its lines.

    Args:
      name: of the point that its end is.
      command: program and arguments.
      until: what is waited for in between, the point NAME: THIRD STEP.

    Returns:
      The lines.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    began = said = time.monotonic()
    lines, silence = [], 0.0
    process = subprocess.Popen(
      command,
      cwd=self.clone,
      env=self.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for line in _lines(process):
      now = time.monotonic()
      if until and until():
        self.times[f"{name}: third step"] = now - began
        until = None
      if line is None:
        continue
      silence, said = max(silence, now - said), now
      lines.append(line)
      print(f"{now - began:7.1f} s | {line}", flush=True)
    self.times[name] = time.monotonic() - began
    if process.wait():
      self.wrong.append(f"{name}: status {process.returncode}")
    if until:
      self.wrong.append(f"{name}: no third step")
    print(f"          status {process.returncode}, silent for {silence:.1f} s")
    return lines

  def mmrl(self, name: str, module: str, *arguments: str, **options) -> None:
    """Runs a command of the library; see `run`."""
    self.run(name, self.python, "-m", module, *arguments, **options)

  def refused(self, *arguments: str) -> None:
    """Runs a command that must be refused in one line, with status 2."""
    command = [self.python, "-m", *arguments]
    print(f"\n$ {shlex.join(command)}", flush=True)
    before = self.files()
    done = subprocess.run(
      command,
      cwd=self.clone,
      env=self.environment(),
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
    print(done.stdout + done.stderr, end="", flush=True)
    lines = done.stderr.splitlines()
    what = " ".join(arguments)
    if done.returncode != 2:
      self.wrong.append(f"{what}: status {done.returncode} instead of 2")
    if len(lines) != 1 or not lines[0].startswith("error: "):
      self.wrong.append(f"{what}: {len(lines)} lines instead of one error")
    left = self.files() - before
    if left:
      self.wrong.append(f"{what}: left {min(left)}")

  def files(self) -> set[pathlib.Path]:
    """Lists what is in the working directories of refused runs."""
    folders = [self.folder / name for name in REFUSED]
    found = {path for folder in folders for path in folder.rglob("*")}
    return found | {folder for folder in folders if folder.exists()}

  def environment(self) -> dict[str, str]:
    """Returns variables of a shell of the user's own; no program is kept."""
    programs = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs")}
    if self.quick:
      return programs | dict(os.environ)
    kept = {
      key: value
      for key, value in os.environ.items()
      if key == "JAX_PLATFORMS"
      or not key.startswith(("JAX_", "XLA_", "PYTHONPATH"))
    }
    return kept | programs


def _lines(process: subprocess.Popen) -> Iterator[str | None]:
  """Yields a process's lines as they come; None now and then in between."""
  read: queue.Queue = queue.Queue()

  def follow() -> None:
    assert process.stdout is not None
    for line in process.stdout:
      read.put(line.rstrip("\n"))
    read.put(process)

  threading.Thread(target=follow, daemon=True).start()
  deadline = time.monotonic() + _SECONDS
  while time.monotonic() < deadline:
    try:
      line = read.get(timeout=0.1)
    except queue.Empty:
      yield None
      continue
    if line is process:
      return
    yield line
  process.kill()


def write_questions(folder: pathlib.Path) -> None:
  """Writes questions about pictures of one colour each."""
  generator = np.random.default_rng(0)
  folder.mkdir()
  for split, count in (("train", QUESTIONS), ("test", QUESTIONS // 4)):
    rows = []
    for number in range(count):
      name = [*COLOURS][generator.integers(len(COLOURS))]
      noise = generator.normal(0, 12, (SIDE, SIDE, 3))
      picture = np.clip(COLOURS[name] + noise, 0, 255).astype(np.uint8)
      file = f"{split}{number}.png"
      Image.fromarray(picture).save(folder / file)
      rows.append(
        {"question": "what colour is it?", "answer": name, "images": [file]}
      )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)


def install(trial: Trial) -> None:
  """Clones and installs as the README says."""
  clone = trial.folder / "mmrl"
  trial.run("clone", "git", "clone", "--quiet", str(ROOT), str(clone))
  trial.clone = clone
  environment = trial.folder / "venv"
  trial.run("environment", sys.executable, "-m", "venv", str(environment))
  trial.python = str(environment / "bin" / "python")
  pip = trial.python, "-m", "pip", "install", "--quiet", "-e"
  trial.run("install", *pip, ".")
  trial.run("install with examples", *pip, ".[examples]")


def look_around(trial: Trial) -> None:
  """Asks for the list of commands, and for help on them."""
  trial.mmrl("list", "mmrl")
  for name in ("train", "check", "sample", "export"):
    trial.mmrl(f"help of {name}", f"mmrl.{name}", "--help")
  trial.mmrl("help of a field", "mmrl.train", "--help-config", "data")


def quick_start(trial: Trial) -> None:
  """Trains as the README begins."""
  workdir = trial.folder / "quickstart"
  place = "--config=experiments/quickstart.py", f"--workdir={workdir}"
  trial.mmrl("quick start", "mmrl.train", *place, *tiny(trial))


def tiny(trial: Trial) -> Sequence[str]:
  return TINY if trial.quick else ()


def own_data(trial: Trial) -> None:
  """Checks and trains on questions of one's own, twice, and uses the model."""
  data = trial.folder / "data"
  write_questions(data)
  config = f"--config=experiments/jsonl.py:{data}"
  listed = f"--output={trial.folder / 'check.jsonl'}"
  trial.mmrl("check", "mmrl.check", config, listed)
  for kind in ("cold", "warm"):
    workdir = trial.folder / kind
    metrics = workdir / "metrics.jsonl"
    trial.mmrl(
      f"own data, {kind}",
      "mmrl.train",
      *(config, f"--workdir={workdir}", f"--config.train.steps={STEPS}"),
      *tiny(trial),
      until=lambda file=metrics: steps(file) >= STEPS,
    )
  place = config, f"--workdir={workdir}"
  trial.mmrl("evaluate", "mmrl.evaluate", *place, *tiny(trial))
  model = f"--model={workdir / 'model'}"
  picture = f"--image={data / 'test0.png'}"
  ask = model, picture, "--prompt=what colour is it?"
  drawn = f"--attention={trial.folder / 'attention.png'}"
  trial.mmrl("sample", "mmrl.sample", *ask, drawn)
  output = f"--output={trial.folder / 'exported'}"
  trial.mmrl("export", "mmrl.export", f"--workdir={workdir}", output)


def steps(metrics: pathlib.Path) -> int:
  """Counts the steps that a run has logged."""
  with contextlib.suppress(FileNotFoundError):
    return metrics.read_text().count("\n")
  return 0


def make_mistakes(trial: Trial) -> None:
  """Makes ten mistakes; a run with the workdir of another is the last."""
  folder, data = trial.folder, trial.folder / "data"
  refused, cold = (f"--workdir={folder / name}" for name in REFUSED)
  bad = folder / "bad"
  bad.mkdir()
  for split in ("train", "test"):
    text = (data / f"{split}.jsonl").read_text()
    (bad / f"{split}.jsonl").write_text(text)
  config = "--config=experiments/quickstart.py"
  train = "mmrl.train", config, refused
  for arguments in (
    ("mmrl", "tran"),
    ("mmrl.train", config),
    ("mmrl.train", config, "--workdirr=x"),
    ("mmrl.train", "--config=nowhere.py", refused),
    ("mmrl.train", f"{config}:grop", refused),
    (*train, "--config.train.stops=3"),
    (*train, "--config.losses.policy.name=clipped"),
    (*train, "--config.models.policy.path=nowhere"),
    ("mmrl.train", f"--config=experiments/jsonl.py:{bad}", refused),
    ("mmrl.train", config, cold),
  ):
    trial.refused(*arguments)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--quick", action="store_true", help="use this environment and tiny sizes"
  )
  quick = parser.parse_args().quick
  with tempfile.TemporaryDirectory(prefix="mmrl-newcomer-") as name:
    folder = pathlib.Path(name)
    trial = Trial(ROOT if quick else folder, sys.executable, folder, quick)
    if not quick:
      install(trial)
    began = time.monotonic()
    for part in (look_around, quick_start, own_data, make_mistakes):
      part(trial)
    print(f"\n{time.monotonic() - began:.0f} s without the installation")
  for point, seconds in trial.times.items():
    print(f"{seconds:8.1f} s  {point}")
  for text in trial.wrong:
    print(f"WRONG: {text}")
  sys.exit(bool(trial.wrong))


if __name__ == "__main__":
  main()
