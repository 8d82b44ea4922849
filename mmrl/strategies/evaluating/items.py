"""Items of a strategy's run: one line of JSON each, which a killed run keeps.

A folder holds strategy.json, what is run, and items.jsonl. An item that failed
because a model did has another line once it was asked again; the last counts.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
from typing import Any

from etils import epath

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.strategies.ask import Ask, Failure, Reply, written
from mmrl.strategies.runner import Result

SETTINGS, ITEMS, SUMMARY = "strategy.json", "items.jsonl", "summary.json"
_MINE = {SETTINGS, ITEMS, SUMMARY, "lock"}
_COUNTS = (
  "calls",
  "retries",
  "failures",
  "cut",
  "prompt_tokens",
  "completion_tokens",
)


@dataclasses.dataclass(frozen=True)
class Item:
  """The answer to a question, or why there is none, and what it cost.

  Attributes:
    index: of the question in the benchmark.
    name: of the question.
    answer: None if it has none.
    failure: why it has none.
    again: whether a model failed, so that it is asked again.
    length: tokens of the last reply.
    ended: whether that wasn't cut off.
    calls: by role, numbers of requests, and of their tokens.
    notes: of the strategy.
    trace: what was asked and replied, as texts.
  """

  index: int
  name: str
  answer: str | None
  failure: str | None
  again: bool
  length: int
  ended: bool
  calls: Mapping[str, Mapping[str, int]]
  notes: Mapping[str, Any]
  trace: list[Mapping[str, str]]


def item(index: int, result: Result) -> Item:
  """Makes the item of a question's outcome."""
  replies = [one for _, one in result.trace if isinstance(one, Reply)]
  answer, failure = result.answer, result.failure
  return Item(
    index=index,
    name=result.name,
    answer=answer.text if answer else None,
    failure=str(failure) if failure else None,
    again=bool(failure and failure.model is not None),
    length=replies[-1].completion_tokens if answer and replies else 0,
    ended=bool(answer and (not replies or replies[-1].ended)),
    calls=_calls(result),
    notes=dict(answer.notes) if answer else {},
    trace=[_told(ask, outcome) for ask, outcome in result.trace],
  )


def _told(ask: Ask, outcome: Reply | Failure) -> dict[str, str]:
  reply = isinstance(outcome, Reply)
  said = outcome.text if isinstance(outcome, Reply) else outcome.error
  kind = "reply" if reply else "error"
  return {"model": ask.model, "asked": written(ask.messages), kind: said}


def _calls(result: Result) -> dict[str, dict[str, int]]:
  found: dict[str, dict[str, int]] = {}
  for (ask, outcome), attempts in zip(
    result.trace, result.attempts, strict=True
  ):
    counts = found.setdefault(ask.model, dict.fromkeys(_COUNTS, 0))
    counts["calls"] += 1
    counts["retries"] += attempts - 1
    if isinstance(outcome, Reply):
      counts["cut"] += not outcome.ended
      counts["prompt_tokens"] += outcome.prompt_tokens
      counts["completion_tokens"] += outcome.completion_tokens
    else:
      counts["failures"] += 1
  return found


def total_calls(items: Mapping[int, Item]) -> dict[str, dict[str, int]]:
  """Adds up the calls of all items by role, and says how many each had."""
  found: dict[str, dict[str, int]] = {}
  for one in items.values():
    for role, counts in one.calls.items():
      total = found.setdefault(role, dict.fromkeys(("items", *_COUNTS), 0))
      total["items"] += 1
      for name in _COUNTS:
        total[name] += counts[name]
  return dict(sorted(found.items()))


def read(path: epath.Path | str) -> Iterator[Item]:
  """Yields the items of a file's whole lines, in order.

  Raises:
    UserError: if it can't be read, or a line isn't an item; names it.
  """
  try:
    data = storage.read_bytes(path)
  except OSError as error:
    raise UserError(
      f"expected a readable file of items at {path}, found:"
      f" {error.strerror or error}"
    ) from error
  for number, line in enumerate(data.split(b"\n")[:-1], 1):
    try:
      raw = json.loads(line)
      yield _checked(raw)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
      raise UserError(
        f"{path}:{number}: expected an item of a strategy's run, found"
        f" {line.decode(errors='replace')!r:.80}; take the line out, or pass"
        " another --workdir"
      ) from error


class Items:
  """The folder of a run.

  Attributes:
    found: items so far, by their number in the benchmark.
  """

  def __init__(
    self, folder: epath.Path, settings: Mapping[str, Any], count: int
  ):
    """Begins a run, or goes on with one.

    Args:
      folder: of the run.
      settings: what is run; those of a run that is there must be the same.
      count: number of questions.

    Raises:
      UserError: if the folder belongs to another run, can't be written or has
        a broken file.
    """
    self._path = folder / ITEMS
    _claim(folder, settings)
    self.found: dict[int, Item] = {}
    if self._path.exists():
      for one in read(self._path):
        if not 0 <= one.index < count:
          raise UserError(
            f"{self._path}: expected items of {count} questions, found number"
            f" {one.index}; pass another --workdir"
          )
        self.found[one.index] = one
      self._cut()

  def _cut(self) -> None:
    """Cuts off what a killed run hasn't written to its end."""
    whole = self._path.read_bytes().rpartition(b"\n")
    os.truncate(self._path, len(whole[0]) + len(whole[1]))

  def remaining(self, count: int) -> list[int]:
    """Returns the numbers of the questions that are (again) to be asked."""
    found = self.found
    return [i for i in range(count) if i not in found or found[i].again]

  def add(self, one: Item) -> None:
    """Writes an item.

    Raises:
      UserError: if it can't be written.
    """
    line = json.dumps(dataclasses.asdict(one), default=str) + "\n"
    try:
      with open(self._path, "ab") as file:
        file.write(line.encode())
    except OSError as error:
      raise UserError(
        f"could not write {self._path}: {error.strerror or error}; free some"
        " space, then run the same command again"
      ) from error
    self.found[one.index] = one


def _claim(folder: epath.Path, settings: Mapping[str, Any]) -> None:
  """Writes what is run, or compares it with what is there."""
  path, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
  if not path.exists():
    others = sorted(storage.names(folder) - _MINE)
    if others:
      raise UserError(
        f"expected a --workdir of its own for a strategy, found {others[0]} in"
        f" {folder}; pass another directory"
      )
    storage.write_text(path, json_files.text(wanted) + "\n")
    return
  there = json_files.read(path, "what a strategy's run does")
  for name in sorted({*wanted, *there}):
    if wanted.get(name) != there.get(name):
      raise UserError(
        f"--{name}: expected {_short(there.get(name))}, of which {folder} has"
        f" items, found {_short(wanted.get(name))}; pass another --workdir"
      )


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 200 else f"{text[:200]}..."


_KINDS: Mapping[str, tuple[type, ...]] = {
  "index": (int,),
  "name": (str,),
  "answer": (str, type(None)),
  "failure": (str, type(None)),
  "again": (bool,),
  "length": (int,),
  "ended": (bool,),
  "calls": (dict,),
  "notes": (dict,),
  "trace": (list,),
}


def _checked(raw: Mapping[str, Any]) -> Item:
  """Makes an item of what was read; raises if it isn't one."""
  for name, kinds in _KINDS.items():
    if type(raw[name]) not in kinds:
      raise TypeError(name)
  for counts in raw["calls"].values():
    if any(type(counts[name]) is not int for name in _COUNTS):
      raise TypeError("calls")
  return Item(**raw)
