"""What matters at 3B and 7B on one GPU or TPU, in about ten minutes.

  python -m experiments.bench.accelerator --output runs/accelerator

Random weights; neither a hub nor data are needed. Each part runs in a process
of its own, so that one that fails, for want of memory or of a kernel, is a line
of the table, and its peak of memory is its own. `results.json` and `results.md`
are written after every line: what ends the bench early leaves what it has.
Parts that don't begin within `--minutes` are left out, and one that runs then
is ended.

  device        product of matrices, copy
  values        small shapes on the device and on the CPU: numbers are equal
  attention-3b  cuDNN's or splash attention against the blocked form
  forward-3b    prefill, decoding at several batches
  step-3b       rollout, probes and update of GRPO and of RAL
  lora-7b, ...  likewise, where only an adapter trains
  whole-3b      sampling and steps with tokenizer and pictures
  peers-3b      the same by Transformers and TRL, where they are installed

Of a program, `plan` is what `mmrl.plan` or XLA counts for it, and `peak` the
most that the process has held on the device so far. Shares are of the
published FLOP/s (`mmrl.plan.chips`), or of a measured product. Without a GPU or
TPU one line says so, and the status is 2; `--tiny` takes any device, and sizes
that mean nothing, for tests.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import datetime
import importlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

from experiments import arguments
from mmrl import storage
from mmrl.errors import UserError, say

RESULTS, TABLE = "results.json", "results.md"
_SMALL, _LARGE = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
# Module, function and sizes of each part, in the order in which they run.
_PARTS, _STEP = "accelerator_parts", "accelerator_step"
PARTS: dict[str, tuple[str, str, dict]] = {
  "device": (_PARTS, "device", {}),
  "values": (_STEP, "values", {}),
  "attention-3b": (_PARTS, "kernels", {"model": _SMALL}),
  "forward-3b": (_PARTS, "forward", {"model": _SMALL}),
  "step-3b": (_STEP, "run_step", {"model": _SMALL}),
  "forward-7b": (_PARTS, "forward", {"model": _LARGE}),
  "lora-7b": (
    *(_STEP, "run_step"),
    {"model": _LARGE, "lora": 16, "methods": ("RAL",)},
  ),
  "attention-7b": (_PARTS, "kernels", {"model": _LARGE}),
  "whole-3b": (_PARTS, "whole", {"model": _SMALL}),
  "peers-3b": (_PARTS, "peers", {"model": _SMALL}),
  "step-7b": (_STEP, "run_step", {"model": _LARGE, "methods": ("RAL",)}),
  "lora-3b": (
    *(_STEP, "run_step"),
    {"model": _SMALL, "lora": 16, "methods": ("RAL",)},
  ),
}
_COLUMNS = {
  "part": "{}",
  "work": "{}",
  "seconds": "{:.4g}",
  "rate": "{}",
  "share": "{:.1%}",
  "plan_gib": "{:.2f}",
  "peak_gib": "{:.2f}",
  "compile_s": "{:.1f}",
  "note": "{}",
}
_TITLES = {"plan_gib": "plan, GiB", "peak_gib": "peak, GiB", "share": "of peak"}
_TITLES |= {"compile_s": "compiling, s", "seconds": "time, s"}


def rows_of(part: str, *, tiny: bool) -> Iterator[dict]:
  """Runs a part in this process, and yields its rows."""
  import jax

  from experiments.bench import accelerator_parts as parts_lib

  module, function, sizes = PARTS[part]
  found = importlib.import_module(f"experiments.bench.{module}")

  chosen = dataclasses.replace(
    parts_lib.TINY if tiny else parts_lib.Sizes(),
    **{k: v for k, v in sizes.items() if not (tiny and k == "model")},
  )
  try:
    for row in getattr(found, function)(chosen):
      # A peer would find the device taken.
      used = {} if part == "peers-3b" else jax.devices()[0].memory_stats()
      if used and "peak_bytes_in_use" in used:
        row["peak_gib"] = used["peak_bytes_in_use"] / 2**30
      yield row
  except Exception as error:
    yield {"work": "the rest", "note": parts_lib.one_line(error)}


def run_apart(part: str, seconds: float, *, tiny: bool) -> Iterator[dict]:
  """Runs a part in a process of its own, and yields its rows as they come."""
  command = [sys.executable, "-m", "experiments.bench.accelerator"]
  command += [f"--part={part}", *(["--tiny"] if tiny else [])]
  late = threading.Event()
  with (
    tempfile.TemporaryFile("w+") as errors,
    subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process,
  ):

    def end() -> None:
      late.set()
      process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
      assert process.stdout is not None
      for line in process.stdout:
        if line.startswith("{"):  # libraries print, too
          yield json.loads(line)
      status = process.wait()
    finally:
      timer.cancel()
      process.kill()
    errors.seek(0)
    lines = errors.read().split("\n")
  if status:
    last = next((line for line in reversed(lines) if line.strip()), "")
    why = (
      "the time was up" if late.is_set() else f"status {status}: {last:.120}"
    )
    yield {"work": "the rest", "note": f"failed: {why}".replace("|", "/")}


def table(found: dict) -> str:
  """The results as Markdown."""
  used = [c for c in _COLUMNS if any(c in row for row in found["rows"])]
  lines = [[_TITLES.get(name, name) for name in used], ["---"] * len(used)]
  for row in found["rows"]:
    lines.append(
      [_COLUMNS[name].format(row[name]) if name in row else "" for name in used]
    )
  text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
  return f"{found['command']}, {found['began']}\n\n{text}"


def write(found: dict, folder: pathlib.Path) -> None:
  """Writes both files; readers find the old or the new ones whole."""
  folder.mkdir(parents=True, exist_ok=True)
  storage.write_text(folder / RESULTS, json.dumps(found, indent=1) + "\n")
  storage.write_text(folder / TABLE, table(found))


def measure(
  names: list[str], folder: pathlib.Path, minutes: float, *, tiny: bool
) -> dict:
  """Runs parts one after the other, and writes every row.

  Raises:
    UserError: if there is no accelerator.
  """
  began, found = time.monotonic(), {
    "command": "`python -m experiments.bench.accelerator`",
    "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    "tiny": tiny,
    "rows": [],
  }  # fmt: skip
  for part in names:
    left = 60 * minutes - (time.monotonic() - began)
    if left <= 0:
      rows = iter([{"work": "all", "note": "left out: the time was up"}])
    else:
      rows = run_apart(part, left, tiny=tiny)
    for row in rows:
      if row.get("platform") == "cpu" and not tiny:
        raise UserError(
          "expected a GPU or TPU, found JAX with a CPU only; install jax[cuda]"
          " or jax[tpu] where there is one"
        )
      found["rows"].append({"part": part} | row)
      write(found, folder)
      shown = {k: v for k, v in row.items() if k not in ("work", "platform")}
      shown = [
        f"{_TITLES.get(k, k)} {_COLUMNS[k].format(v)}".removeprefix("note ")
        for k, v in shown.items()
      ]
      say(f"{part}: {row['work']}: {', '.join(shown)}")
  return found


def parse() -> argparse.Namespace:
  """Parses the command line."""
  parser = arguments.Parser(__doc__)
  add = parser.add_argument
  add(
    "--output",
    type=arguments.output_folder,
    default=pathlib.Path("runs/accelerator"),
    help="folder for results.json and results.md, which it hasn't yet",
  )
  add("--minutes", type=float, default=10.0, help="all parts together")
  add(
    "--parts",
    nargs="+",
    choices=PARTS,
    default=[*PARTS],
    help="which, in this order",
  )
  add("--tiny", action="store_true", help="any device, tiny shapes: for tests")
  add("--part", choices=PARTS, help=argparse.SUPPRESS)
  flags = parser.parse()
  if not flags.minutes > 0:
    parser.error(f"--minutes: expected more than 0, found {flags.minutes}")
  if not flags.part and (flags.output / RESULTS).exists():
    parser.error(
      f"--output: expected a folder without results, found {RESULTS} in"
      f" {flags.output}; name another one"
    )
  return flags


def main() -> None:
  """Runs all parts, or one of them in this process."""
  flags = parse()
  if flags.part:
    for row in rows_of(flags.part, tiny=flags.tiny):
      print(json.dumps(row), flush=True)
    return
  # So that the part's process doesn't outlive this one.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  names = [*dict.fromkeys(["device", *flags.parts])]
  measure(names, flags.output, flags.minutes, tiny=flags.tiny)


if __name__ == "__main__":
  arguments.run(main)
