"""Claim of a working directory by one config."""

import contextlib
import difflib
import json

import ml_collections

from mmrl import storage
from mmrl.errors import UserError
from mmrl.workdir import lock


def claim(workdir: storage.Name, config: ml_collections.ConfigDict) -> None:
  """Writes a run's config to its working directory, or checks that it matches.

  Raises:
    UserError: if it can't be written, or belongs to a config that differs in
      more than its mesh, its trackers and its folder for compiled programs.
  """
  settings = config.to_dict()
  text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
  workdir = storage.path(workdir)
  path = workdir / "config.json"
  try:
    found = storage.read_text(path)
  except FileNotFoundError:
    storage.write_text(path, text)
    return
  except OSError as error:
    raise lock.unwritable(workdir, error) from error
  with contextlib.suppress(ValueError, TypeError):
    # A run may resume on another mesh, tracked and with programs elsewhere.
    names = ("mesh", "trackers", "compilation_cache")
    free = {name: settings[name] for name in names}
    same = json.loads(found) | free
    found = json.dumps(same, indent=2, sort_keys=True) + "\n"
  if found != text:
    changes = difflib.unified_diff(
      found.splitlines(), text.splitlines(), n=0, lineterm=""
    )
    lines = [
      " ".join(c.split()) for c in changes if c[:3] not in ("---", "+++")
    ]
    shown = "; ".join(line for line in lines if not line.startswith("@@"))
    raise UserError(
      f"{workdir} belongs to a run with another config ({shown:.300}); pass a"
      " new --workdir, or the config it began with"
    )
