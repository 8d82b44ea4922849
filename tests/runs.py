"""Whole runs in processes of their own, to be stopped and started again."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import safetensors.numpy

from mmrl.train import run as run_lib

ROOT = pathlib.Path(__file__).parents[1]
# How a config file of a small run begins. Where XLA's optimiser is off, as it
# is unless a test says otherwise, the layers are in a scan, as in conftest.
CONFIG = """
import os

from mmrl import config as config_lib
from mmrl.models import vlm

if os.environ["XLA_FLAGS"]:
  vlm._UNROLLED_BYTES = 0

def get_config():
  config = config_lib.get_config()
  config.models.policy.remat = False
  config.evaluation.benchmarks.test.questions = 8
  config.evaluation.batch = 8
  config.evaluation.shown = 2
"""
# Programs are compiled often and run little: their optimiser is off.
FLAGS = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
# Longest time from a start to an end, on a busy machine.
WHOLE_SECONDS = 900


def make_folder(parent: pathlib.Path, *lines: str) -> pathlib.Path:
  """A folder for runs of one config.

  Args:
    parent: as `tmp_path_factory.mktemp` makes it.
    lines: of the config file, after those of every small run.
  """
  body = "".join(f"  {line}\n" for line in (*lines, "return config"))
  (parent / "config.py").write_text(CONFIG + body)
  return parent


@contextlib.contextmanager
def heard():
  """Processes started inside hear ctrl-C, even where these tests don't."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def use_devices(monkeypatch, count: int) -> None:
  """Runs in this process have that many devices, of eight."""
  devices = jax.devices()[:count]
  built = functools.partial(run_lib.build_run, devices=devices)
  monkeypatch.setattr(run_lib, "build_run", built)


def free_port() -> int:
  with socket.socket() as taken:
    taken.bind(("localhost", 0))
    return taken.getsockname()[1]


@dataclasses.dataclass
class Started:
  """Processes of one run, each with files for what it prints."""

  processes: dict[int, subprocess.Popen]
  texts: pathlib.Path

  def output(self, index: int = 0) -> str:
    return (self.texts / f"{index}.out").read_text()

  def error(self, index: int = 0) -> str:
    return (self.texts / f"{index}.err").read_text()

  def errors(self) -> list[str]:
    return [self.error(i) for i in self.processes]

  def wait(self, seconds: float = WHOLE_SECONDS) -> list[int]:
    """Exit statuses of all."""
    deadline = time.monotonic() + seconds
    return [
      process.wait(max(deadline - time.monotonic(), 0.01))
      for process in self.processes.values()
    ]

  def until(
    self, condition: Callable[[], bool], seconds: float = WHOLE_SECONDS
  ) -> bool:
    """Whether the condition came while all of them went on."""
    deadline = time.monotonic() + seconds
    while all(p.poll() is None for p in self.processes.values()):
      if condition():
        return True
      assert time.monotonic() < deadline, self.errors()
      time.sleep(0.002)
    return False


@contextlib.contextmanager
def start(
  folder,
  workdir,
  count=1,
  *,
  arguments=(),
  each=(),
  order=None,
  pause=0.0,
  flags=FLAGS,
  program=("-m", "mmrl.train"),
  output=None,
):
  """Starts a run; ends what is left of it.

  Args:
    folder: of the config.
    workdir: of the run.
    count: of processes.
    arguments: further ones, of all processes.
    each: further ones of each process.
    order: in which they are started; those that aren't in it never are.
    pause: seconds between two starts.
    flags: of XLA.
    program: what Python runs.
    output: file that they print to, in place of one for each.
  """
  port = free_port()
  began: dict[int, subprocess.Popen] = {}
  texts = tempfile.mkdtemp(prefix=f"{workdir.name}-", dir=folder)
  texts = pathlib.Path(texts)
  try:
    for i in order or range(count):
      if began:
        time.sleep(pause)
      command = [
        *(sys.executable, *program),
        f"--config={folder / 'config.py'}",
        f"--workdir={workdir}",
        *arguments,
        *(each[i] if each else ()),
      ]
      if count > 1:
        command += [
          f"--coordinator=localhost:{port}",
          f"--processes={count}",
          f"--process={i}",
        ]
      with (
        open(output or texts / f"{i}.out", "w") as out,
        open(texts / f"{i}.err", "w") as error,
        heard(),
      ):
        began[i] = subprocess.Popen(
          command,
          cwd=ROOT,
          env=os.environ | {"XLA_FLAGS": flags},
          stdout=out,
          stderr=error,
        )
    yield Started(dict(sorted(began.items())), texts)
  finally:
    for process in began.values():
      if process.poll() is None:
        process.kill()
      process.wait()


def finish(folder, workdir, count=1, **options) -> Started:
  """Starts a run, which ends well."""
  with start(folder, workdir, count, **options) as started:
    statuses = started.wait()
  texts = [text[-2000:] for text in started.errors()]
  assert statuses == [0] * count, texts
  return started


def command(module: str, *arguments: str) -> subprocess.CompletedProcess:
  """A program of the library, run to its end."""
  return subprocess.run(
    [sys.executable, "-m", module, *arguments],
    capture_output=True,
    text=True,
    timeout=300,
  )


@contextlib.contextmanager
def full_disk(size):
  """No file grows beyond `size` bytes: a part of a write may fit."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What a run leaves.


def rows(workdir) -> list[dict[str, float]]:
  """metrics.jsonl without what a clock or a compiler has a hand in."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in lines
  ]


def logged(workdir) -> int:
  """How many steps are in metrics.jsonl; 0 without one."""
  metrics = workdir / "metrics.jsonl"
  return metrics.read_text().count("\n") if metrics.exists() else 0


def saved(workdir) -> int:
  """Step of the newest checkpoint that is whole; 0 without one."""
  folders = workdir.glob("checkpoints/*")
  return max((int(p.name) for p in folders if p.name.isdigit()), default=0)


def parameters(workdir) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(workdir / "model" / "model.safetensors")


def assert_same(workdir, other):
  """Parameters, metrics, evaluations and samples, bit by bit."""
  ours, theirs = parameters(workdir), parameters(other)
  assert ours.keys() == theirs.keys()
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
  np.testing.assert_equal(rows(workdir), rows(other))
  for name in ("before.json", "after.json", "samples.jsonl"):
    assert (workdir / name).read_text() == (other / name).read_text(), name


def names(workdir):
  """Files of a run; those of a checkpoint depend on who wrote which part."""
  return {
    path.relative_to(workdir).parts[0]
    for path in workdir.rglob("*")
    if path.is_file()
  }


def assert_close(workdir, other):
  """But for rounding, which sums over several processes round otherwise."""
  ours, theirs = rows(workdir), rows(other)
  assert len(ours) == len(theirs)
  for one, two in zip(ours, theirs, strict=True):
    assert set(one) == set(two)
    for name, value in two.items():
      if not name.startswith("rollout/sampler_scorer"):
        np.testing.assert_allclose(
          one[name], value, rtol=2e-4, atol=2e-6, err_msg=name
        )
  ours, theirs = parameters(workdir), parameters(other)
  first = safetensors.numpy.load_file(
    ROOT / "mmrl" / "hub" / "tiny" / "model.safetensors"
  )
  assert ours.keys() == theirs.keys()
  moved_any = False
  for name, tensor in theirs.items():
    moved = np.abs(tensor - first[name]).max()
    moved_any |= moved > 0
    difference = np.abs(ours[name] - tensor)
    assert np.quantile(difference, 0.99) <= 0.02 * moved, name
  assert moved_any
