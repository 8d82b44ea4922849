"""Models of a strategy's roles, as a command line names them."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import re
from typing import Any

from mmrl import build, hub, python_files
from mmrl.errors import UserError, nearest
from mmrl.strategies.ask import Responder
from mmrl.strategies.responders.embedder import Embedder
from mmrl.strategies.responders.endpoint import Endpoint, from_environment
from mmrl.strategies.responders.local import local_model
from mmrl.strategies.responders.pair import local_pair
from mmrl.strategies.responders.scripted import Scripted

# Roles that are more than a model to be asked for texts.
EMBEDDER, PAIR = "embedder", "policy_and_base"


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How models answer that aren't asked otherwise.

  Attributes:
    length: most tokens of a reply.
    temperature: 0 is greedy.
    seed: of sampling.
    batch: requests that a local model decodes together.
    dtype: of a local model.
    frames: most frames of a video that a server is sent as pictures; 0 refuses
      videos. A model on this machine takes frames as its family does.
  """

  length: int = 512
  temperature: float = 0.0
  seed: int = 0
  batch: int = 16
  dtype: str = "float32"
  frames: int = 0


def assign(
  given: Sequence[str], roles: Sequence[str] | None, strategy: str
) -> dict[str, str]:
  """Returns the source of each role's model.

  Args:
    given: texts of ROLE=SOURCE, or SOURCE for all other roles, each one or
      several with commas between.
    roles: that the strategy asks; None if it doesn't say.
    strategy: its name.

  Raises:
    UserError: if a role has no model, or two, or isn't asked.
  """
  found: dict[str, str] = {}
  rest = None
  for text in (one.strip() for many in given for one in many.split(",")):
    role, equals, source = text.partition("=")
    if not equals or not re.fullmatch(r"\w+", role):
      role, source = "", text
    if not source:
      raise UserError(
        "--models: expected ROLE=SOURCE, or SOURCE for all other roles, found"
        f" {text!r}"
      )
    if role in found or (not role and rest is not None):
      whose = f"role {role!r}" if role else "all other roles"
      raise UserError(f"--models: expected one model for {whose}, found two")
    if role:
      found[role] = source
    else:
      rest = source
  if roles is None:
    if rest is not None:
      raise UserError(
        f"--models: expected ROLE=SOURCE, as {strategy} doesn't say which roles"
        f" it asks, found {rest!r}; mark it with `mmrl.marks.marked(asks=...)`"
      )
    return found
  listed = ", ".join(roles)
  for role in found:
    if role not in roles:
      raise UserError(
        f"--models: expected models that {strategy} asks, {listed}, found one"
        f" for {role!r}{nearest(role, roles)}; leave it out"
      )
  lacking = [role for role in roles if role not in found]
  if lacking and rest is None:
    raise UserError(
      f"--models: expected a model for each that {strategy} asks, {listed},"
      f" found none for {', '.join(lacking)}; add {lacking[0]}=SOURCE"
    )
  if rest is not None and not lacking:
    raise UserError(
      f"--models: expected models that {strategy} asks, {listed}, found"
      f" {rest!r} besides them; leave it out"
    )
  return found | dict.fromkeys(lacking, rest or "")


def open_all(
  sources: Mapping[str, str], decoding: Decoding
) -> dict[str, Responder]:
  """Opens the model of each role; one source for several roles is opened once.

  Args:
    sources: by role: a model directory or hub id; "endpoint:NAME", a model
      behind the address in the environment's OPENAI_BASE_URL, or in VARIABLE
      with "endpoint:NAME@VARIABLE"; FILE.json, a table of replies by the texts
      that are asked; or FILE.py:FUNCTION of an `Ask`, which replies.
      "embedder" is such a model's hidden state, "policy_and_base" DIR+DIR.
    decoding: how they answer.

  Raises:
    UserError: if one can't be opened; names the role.
  """
  opened: dict[tuple[str, str], Responder] = {}
  found = {}
  for role, source in sources.items():
    kind = role if role in (EMBEDDER, PAIR) else ""
    if (kind, source) not in opened:
      try:
        opened[kind, source] = _open(kind, source, decoding)
      except UserError as error:
        raise UserError(f"--models: {role}: {error}") from error
    found[role] = opened[kind, source]
  return found


def _open(kind: str, source: str, decoding: Decoding) -> Responder:
  scripted = _scripted(source)
  if scripted is not None:
    return scripted
  options: dict[str, Any] = {
    "length": decoding.length,
    "temperature": decoding.temperature,
    "seed": decoding.seed,
  }
  if source.startswith("endpoint:"):
    if kind:
      raise UserError(
        f"expected a model on this machine, found {source}; give a directory"
      )
    name, _, variable = source.removeprefix("endpoint:").partition("@")
    if not name:
      raise UserError(f"expected endpoint:NAME, found {source!r}")
    address = from_environment(
      variable or "OPENAI_BASE_URL", "the address of a server"
    )
    key = os.environ.get("OPENAI_API_KEY", "")
    return Endpoint(
      name, address=address, key=key, frames=decoding.frames, **options
    )
  if kind == EMBEDDER:
    return Embedder(_load(source, decoding.dtype))
  options["batch"] = decoding.batch
  if kind == PAIR:
    policy, plus, base = source.partition("+")
    if not plus:
      raise UserError(f"expected two directories, DIR+DIR, found {source!r}")
    pair = (_load(one, decoding.dtype) for one in (policy, base))
    return local_pair(*pair, **options)
  return local_model(_load(source, decoding.dtype), **options)


def _load(source: str, dtype: str) -> hub.Model:
  model = hub.load(source, dtype=dtype)
  config = dataclasses.replace(model.config, dtype=dtype)
  return dataclasses.replace(model, config=config)


def _scripted(source: str) -> Scripted | None:
  """Opens replies that are written down; None if it isn't such a source."""
  file = build.file_of(source)
  if file:
    module = python_files.imported(file, "a file of Python with a function")
    name = source.rpartition(":")[2]
    return Scripted(python_files.function(module, name, file))
  if not source.endswith(".json"):
    return None
  try:
    with open(source, encoding="utf-8") as opened:
      table = json.load(opened)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"expected a table of replies in {source}, found: {error!s:.200}"
    ) from error
  if not isinstance(table, dict) or not all(
    isinstance(reply, str) for reply in table.values()
  ):
    raise UserError(
      f"expected a table of replies in {source}, an object of texts, found"
      f" {table!r:.80}"
    )
  return Scripted(table)
