"""Changes the numeric code, one place at a time, and finds what no test sees.

    python -m tests.mutants                    every mutant
    python -m tests.mutants --only policy.py   those whose name matches

A mutant is a module of `FILES` with one change by `mutations.OPERATORS`. It is
killed if a test of `TESTS` fails or takes too long; those of its own file run
first. One that survives wants a test, or, where it computes what the original
computes, a reason in `mutants_accepted.txt`.

A worker is a process that stays: before each mutant it forgets the tests and
those modules of the library that may use the mutant (`USERS`), and keeps JAX
with the small programs it has made. Larger ones come from a compilation cache
on the disk, $JAX_COMPILATION_CACHE_DIR or one for this run. Before the first
mutant and after the last one, the tests must pass without any.
"""

import argparse
import collections
from concurrent import futures
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import queue
import re
import shutil
import sys
import tempfile
import time

from tests.mutations import OPERATORS, Mutant, mutants

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
  path.relative_to(ROOT / "mmrl").as_posix()
  for package in ("losses", "advantages", "token_weights")
  for path in sorted((ROOT / "mmrl" / package).glob("[!_]*.py"))
  if path.name != "state.py"  # a protocol: nothing to change
]
FILES.append("train/objective.py")
# Test files of a module, where not one of its name, and of a whole package.
TESTS = {
  "advantages/reference": ["advantages/rloo", "advantages/reinforce"],
  "train/objective": ["train/objective", "losses/reduce"],
  "losses/reduce": ["losses/reduce", "token_weights/late"],
  "token_weights/future_kl": ["token_weights/future_kl", "token_weights/late"],
}
MORE_TESTS = {
  "losses": ["losses/libraries", "train/objective", "precision"],
  "advantages": ["losses/libraries", "precision"],
  "token_weights": ["precision"],
  "train": [],
}
# What may use a module of a package, and is imported anew with it.
USERS = {
  "losses": ("losses", "advantages", "token_weights", "train"),
  "advantages": ("advantages", "train"),
  "token_weights": ("token_weights", "train"),
  "train": ("train",),
}
LIMIT = 600  # Seconds of one mutant.
SERVED = 60  # Mutants of one worker: what JAX keeps of each isn't freed.


def all_mutants() -> list[Mutant]:
  """Those of every file."""
  return [
    mutant
    for file in FILES
    for mutant in mutants(file, (ROOT / "mmrl" / file).read_text("utf-8"))
  ]


def accepted() -> dict[str, str]:
  """Name of each mutant that may survive -> why."""
  found, reason = {}, ""
  path = ROOT / "tests" / "mutants_accepted.txt"
  for line in filter(None, path.read_text("utf-8").splitlines()):
    if line.startswith("  "):
      found[line.strip()] = reason
    else:
      reason = line
  return found


def tests_of(file: str) -> list[str]:
  """Tests of a module, its own first, then what compares many at once."""
  module = file.removesuffix(".py")
  own = TESTS.get(module, [module])
  more = MORE_TESTS[file.partition("/")[0]]
  return [f"tests/{name}_test.py" for name in own + more]


class FirstFailure:
  """A pytest plugin that remembers the first test to fail."""

  name = ""

  def pytest_collection(self):
    # beartype takes a class that is imported anew for the one it was before.
    sys.meta_path[:] = [x for x in sys.meta_path if "jaxtyping" not in repr(x)]

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.name:
      self.name = report.nodeid

  pytest_collectreport = pytest_runtest_logreport


def work(pipe, folder: str):
  """Answers (file, source or "", tests) with the first failure, or ""."""
  import pytest

  sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
  os.chdir(folder)
  sys.dont_write_bytecode = False  # Importing takes most of the time.
  programs = str(pathlib.Path(folder).parent / "programs")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  sys.stdout = open(os.devnull, "w")  # noqa: SIM115, of the process
  for number in itertools.count():
    file, source, tests = pipe.recv()
    path = pathlib.Path(folder, "mmrl", file)
    if source:
      path.write_text(source, "utf-8")
      # Its own time: Python recognises its compiled files by time and size.
      os.utime(path, (number, number))
    users = tuple(f"mmrl.{name}" for name in USERS[file.partition("/")[0]])
    failures = (run_tests(pytest, folder, test, users) for test in tests)
    failure = next(filter(None, failures), "")
    shutil.copy2(pathlib.Path(f"{folder}/../original/mmrl", file), path)
    pipe.send(failure)


def run_tests(pytest, folder: str, tests: str, users: tuple[str, ...]) -> str:
  """The first test of a file that fails, or "".

  The tests and `users` are imported anew: mutants of another package may have
  left them behind.
  """
  forget(folder, users)
  finders, environ, paths = sys.meta_path[:], dict(os.environ), sys.path[:]
  failure = FirstFailure()
  options = ["-x", "-n0", "--assert=plain"]
  # The second collects garbage twice.
  options += ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
  status = pytest.main([*options, tests], plugins=[failure])
  forget(folder, users)
  sys.meta_path[:], sys.path[:] = finders, paths
  os.environ.clear()
  os.environ.update(environ)
  return "" if status == 0 else failure.name or f"pytest ended with {status!r}"


def forget(folder: str, users: tuple[str, ...]):
  """Lets the tests and `users` be imported anew."""
  for name, module in [*sys.modules.items()]:
    place = str(getattr(module, "__file__", None))
    if place.startswith(f"{folder}/tests/") or name.startswith(users):
      del sys.modules[name]
      package, _, last = name.rpartition(".")
      vars(sys.modules.get(package, sys)).pop(last, None)
    elif name == "mmrl" and not place.startswith(folder):
      raise RuntimeError(f"the tests imported {place}")


class Worker:
  """A process that runs tests on a copy of the library."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.original = folder.parent / "original"
    if not self.original.exists():
      for name in ("mmrl", "tests", "experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, self.original / name, ignore=ignore)
      shutil.copy(ROOT / "pyproject.toml", self.original)
    shutil.copytree(self.original, folder)
    self.start()

  def start(self):
    context = multiprocessing.get_context("spawn")
    self.pipe, other = context.Pipe()
    self.process = context.Process(
      target=work, args=(other, str(self.folder)), daemon=True
    )
    self.process.start()
    other.close()
    self.served = 0

  def stop(self):
    self.process.kill()
    self.process.join()

  def run(self, file: str, source: str, tests: list[str]) -> str:
    """The first test that fails, or "time-out or crash", or "" if all pass."""
    if self.served == SERVED:
      self.stop()
      self.start()
    self.served += 1
    self.pipe.send((file, source, tests))
    with contextlib.suppress(EOFError, OSError):  # The process has ended.
      if self.pipe.poll(LIMIT):
        return self.pipe.recv()
    self.stop()
    shutil.copy2(self.original / "mmrl" / file, self.folder / "mmrl" / file)
    self.start()
    return "time-out or crash"


def run(chosen: list[Mutant], jobs: int) -> dict[str, str]:
  """Name of each mutant -> what killed it, "" if it survived."""
  with (
    tempfile.TemporaryDirectory(prefix="mutants-") as folder,
    futures.ThreadPoolExecutor(jobs) as pool,
  ):
    workers = queue.SimpleQueue()
    for number in range(jobs):
      workers.put(Worker(pathlib.Path(folder, str(number))))

    def run_one(file: str, source: str, tests: list[str]) -> str:
      worker = workers.get()
      failure = worker.run(file, source, tests)
      workers.put(worker)
      return failure

    def without_mutant():
      tests = dict.fromkeys(test for m in chosen for test in tests_of(m.file))
      for failure in pool.map(lambda x: run_one(FILES[0], "", [x]), tests):
        if failure:
          sys.exit(f"The tests fail without a mutant: {failure}")

    def with_mutant(mutant: Mutant) -> str:
      return run_one(mutant.file, mutant.source, tests_of(mutant.file))

    without_mutant()
    results, start = {}, time.monotonic()
    for mutant, result in zip(
      chosen, pool.map(with_mutant, chosen), strict=True
    ):
      results[mutant.name] = result
      status = f"killed by {result}" if result else "SURVIVED"
      line = f"{len(results)}/{len(chosen)} {mutant.name}: {status}"
      print(f"{time.monotonic() - start:.0f} s, {line}", flush=True)
    without_mutant()
    for _ in range(jobs):
      workers.get().stop()
  return results


def report(chosen: list[Mutant], results: dict[str, str]) -> bool:
  """Prints a table and what is wrong; True if nothing is."""
  counts = collections.defaultdict(collections.Counter)
  reasons, wrong = accepted(), []
  for mutant in chosen:
    result, reason = results[mutant.name], reasons.get(mutant.name)
    kind = "killed" if result else "accepted" if reason else "survived"
    if result == "time-out or crash":
      kind = "timed out"
    counts[mutant.operator][kind] += 1
    if not result and not reason:
      wrong.append(f"survived: {mutant.name}\n  instead of: {mutant.line}")
    if result and reason:
      wrong.append(f"accepted, but killed by {result}: {mutant.name}")
  kinds = ("killed", "timed out", "survived", "accepted")
  rows = [("operator", *kinds)]
  for operator in OPERATORS:
    row = counts[operator.__name__]
    rows.append((operator.__name__, *(str(row[kind]) for kind in kinds)))
  total = sum(counts.values(), collections.Counter())
  rows.append(("all", *(str(total[kind]) for kind in kinds)))
  for row in rows:
    print("".join(f"{cell:<12}" for cell in row).rstrip())
  print("\n".join(wrong))
  return not wrong


def main():
  """Runs the mutants; status 1 if one survives that isn't accepted."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="regular expression")
  parser.add_argument("--jobs", type=int, default=2, help="processes")
  parser.add_argument("--list", action="store_true", help="print names only")
  parser.add_argument("--json", type=pathlib.Path, help="file for the results")
  options = parser.parse_args()
  everything = all_mutants()
  chosen = [m for m in everything if re.search(options.only, m.name)]
  if options.list:
    print(*(mutant.name for mutant in chosen), sep="\n")
    return
  gone = accepted().keys() - {mutant.name for mutant in everything}
  if gone:
    sys.exit("accepted, but there is no such mutant:\n" + "\n".join(gone))
  results = run(chosen, options.jobs)
  if options.json:
    options.json.write_text(json.dumps(results, indent=2), "utf-8")
  sys.exit(not report(chosen, results))


if __name__ == "__main__":
  main()
