"""Claim of a working directory by one config, and what of it may change."""

from collections.abc import Mapping
import contextlib
import fnmatch
import json
from typing import Any

import ml_collections

from mmrl import storage
from mmrl.errors import UserError
from mmrl.workdir import lock
from mmrl.workdir.checkpoint import Checkpoints

# Fields that a run may resume with another value of, and why: with it the
# trained parameters are those of a run that had it from its first step, bit for
# bit, or on another mesh to rounding. Every other field is refused. Some of
# these seem harmless: `data.workers`, in whose terms a position in the data is
# saved; `evaluation.shown` and `evaluation.benchmarks`, by which the model was
# measured before; `shares`, which decides how pictures are packed.
MAY_CHANGE = {
  "mesh.*": "sums are in another order",
  "models.*.mesh*": "as the run's own",
  "train.steps": "a step doesn't know how many follow",
  "checkpoint.every": "saves what is there",
  "checkpoint.keep": "saves what is there",
  "evaluation.every": "measures only",
  "evaluation.batch": "measures only, question by question",
  "trackers*": "are told what is measured",
  "samples*": "are shown only",
  "compilation_cache": "programs are the same wherever they are kept",
  "data.threads": "questions are read in the same order",
}
# What a run makes at its end, of the parameters that it then has.
_AT_THE_END = ("summary.json", "report.html", "after.json", "model")
# Differences that an error names.
_SHOWN = 3
_NONE = object()


def check(
  workdir: storage.Name, config: ml_collections.ConfigDict
) -> dict[str, Any] | None:
  """Checks that a config may go on with a run; writes nothing.

  Returns:
    The content of summary.json if the run has finished this many steps, else
    None.

  Raises:
    UserError: if the directory can't be read, or belongs to a config that
      differs in more than `MAY_CHANGE`.
  """
  workdir = storage.path(workdir)
  found = _read(workdir)
  if found is None:
    return None
  old, new = flat(found), flat(_plain(config))
  differing = [
    name
    for name in sorted(old.keys() | new.keys())
    if old.get(name, _NONE) != new.get(name, _NONE)
  ]
  refused = [name for name in differing if not _may_change(name)]
  if refused:
    shown = "; ".join(
      f"config.{name} is {_text(old, name)} there, found {_text(new, name)}"
      for name in refused[:_SHOWN]
    )
    more = len(refused) - _SHOWN
    more_text = f"; and {more} more" if more > 0 else ""
    raise UserError(
      f"{workdir} belongs to a run with another config: {shown}{more_text};"
      " pass a new --workdir, or the config it began with, in which only"
      f" {', '.join(name.rstrip('.*') for name in MAY_CHANGE)} may change"
    )
  saved = Checkpoints(workdir, read_only=True).latest or 0
  if config.train.steps < saved:
    raise UserError(
      f"config.train.steps: expected at least {saved}, as {workdir} has a"
      f" checkpoint of that step, found {config.train.steps}; raise it, or pass"
      " a new --workdir"
    )
  return _finished(workdir, config.train.steps)


def claim(workdir: storage.Name, config: ml_collections.ConfigDict) -> None:
  """Writes a run's config to its working directory, for `check` has passed it.

  With another number of steps, what the run made at its earlier end goes: it
  will be made anew. `before.json` stays.

  Raises:
    UserError: if it can't be written.
  """
  workdir = storage.path(workdir)
  found, settings = _read(workdir), _plain(config)
  if found == settings:
    return
  steps = config.train.steps
  if found is not None and flat(found).get("train.steps") != steps:
    try:
      with storage.errors(workdir):
        for name in _AT_THE_END:
          _remove(workdir / name)
    except OSError as error:
      raise lock.unwritable(workdir, error) from error
  text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
  storage.write_text(workdir / "config.json", text)


def config_of(workdir: storage.Name) -> ml_collections.ConfigDict:
  """Reads the config of a run, with lists for tuples.

  Raises:
    UserError: if it isn't the working directory of one.
  """
  try:
    text = storage.read_text(storage.path(workdir) / "config.json")
    return ml_collections.ConfigDict(json.loads(text))
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f"expected the --workdir of a run, found {workdir}: {error}"
    ) from error


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Names every value of nested tables, as in `train.steps`."""
  found: dict[str, Any] = {}
  for key, value in table.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping) and value:
      found |= flat(value, f"{name}.")
    else:
      found[name] = value
  return found


def _text(values: Mapping[str, Any], name: str) -> str:
  return f"{values[name]!r:.80}" if name in values else "nothing"


def _may_change(name: str) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in MAY_CHANGE)


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as it is read from JSON: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def _read(workdir) -> dict[str, Any] | None:
  """Reads the directory's config; None if there is none."""
  path = workdir / "config.json"
  try:
    found = json.loads(storage.read_text(path))
  except FileNotFoundError:
    return None
  except OSError as error:
    raise lock.unwritable(workdir, error) from error
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise UserError(
      f"expected the config of a run at {path}, found another text; pass a new"
      " --workdir, or put the file back"
    )
  return found


def _finished(workdir, steps: int) -> dict[str, Any] | None:
  """Reads the summary of a run that has made all it makes, of these steps."""
  made = ("before.json", "after.json", "model/config.json", "report.html")
  with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
    summary = json.loads(storage.read_text(workdir / "summary.json"))
    if summary["steps"] == steps and all((workdir / x).exists() for x in made):
      return summary
  return None


def _remove(path) -> None:
  if path.is_dir():
    path.rmtree()
  else:
    path.unlink(missing_ok=True)
