"""What functions of the slots need of every question, checked before a run."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mmrl import build, errors
from mmrl.errors import UserError


def require_all(bounds: Iterable[build.Bound], source: Any) -> None:
  """Checks that a source's questions have what functions read of each.

  That is a right answer, a marked region, a kind, or what a source knows
  besides (`mmrl.marks`).

  Args:
    bounds: functions of the slots.
    source: of `mmrl.data`; one that doesn't list its answers (`pairs`, `names`)
      is checked as its questions are drawn. One that doesn't list its regions
      (`regions`) makes its pictures itself, and isn't checked; nor is what one
      knows besides that doesn't list it (`extras`), nor kinds of one that
      doesn't list them (`kinds`).

  Raises:
    UserError: naming the function, and the first question without one.
  """
  bounds = list(bounds)
  for bound in bounds:
    needs = getattr(bound.function, "needs_region", None)
    if needs and needs(**bound.options) and hasattr(source, "regions"):
      _regions(bound, source.regions())
    extra = getattr(bound.function, "needs_extra", ())
    extra = extra(**bound.options) if callable(extra) else extra
    if extra and hasattr(source, "extras"):
      _extras(bound, extra, source.extras())
    kinds = getattr(bound.function, "needs_kinds", ())
    if kinds and hasattr(source, "kinds"):
      _kinds(bound, kinds, source.kinds())
  read = [bound for bound in bounds if "answer" in bound.needs]
  if read and hasattr(source, "pairs") and hasattr(source, "names"):
    _answers(read, zip(source.names(), source.pairs(), strict=True))


def _answers(
  read: Sequence[build.Bound],
  questions: Iterable[tuple[str, tuple[str, str | None]]],
) -> None:
  """Checks name, question and right answer of each, as functions read them."""
  forms = [
    (bound, bound.function.needs_answer)
    for bound in read
    if hasattr(bound.function, "needs_answer")
  ]
  for name, (question, right) in questions:
    require(read[0], [(name, right)])
    for bound, check in forms:
      with errors.of_field(f"{bound.where}: {name}"):
        check(question, right)


def _regions(bound: build.Bound, regions: Iterable[tuple[str, bool]]) -> None:
  """Checks that questions have a region; `regions` tells of each by name."""
  without = [name for name, there in regions if not there]
  if without:
    more = f" and {len(without) - 1} more" if len(without) > 1 else ""
    raise UserError(
      f"{bound.where}: expected a picture with a 'region' in every question, as"
      f" {bound.name} reads it, found none in {without[0]}{more}; mark them, or"
      " set `without` to leave them out"
    )


def _extras(
  bound: build.Bound,
  needed: Collection[str],
  extras: Iterable[tuple[str, Collection[str]]],
) -> None:
  """Checks that questions have what `extras` lists of each, by name."""
  for name, there in extras:
    lacking = [one for one in needed if one not in there]
    if lacking:
      raise UserError(
        f"{bound.where}: expected {' and '.join(map(repr, lacking))} of every"
        f" question, as {bound.name} reads it, found none of {name}; add it to"
        " the data, or take a source that has it (docs/data.md)"
      )


def _kinds(
  bound: build.Bound, known: Collection[str], kinds: Iterable[str]
) -> None:
  """Checks that a function can read every kind of a source's questions."""
  others = [kind for kind in dict.fromkeys(kinds) if kind not in known]
  if others:
    raise UserError(
      f"{bound.where}: expected questions of kinds {', '.join(known)}, which"
      f" {bound.name} reads, found {', '.join(map(repr, others))}; set `kinds`"
      " of the data to some of these"
    )


def require(
  bound: build.Bound, answers: Iterable[tuple[str, str | None]]
) -> None:
  """Checks that questions have the right answer that a reward reads.

  Args:
    bound: the reward.
    answers: name and first right answer, if any, of each question.

  Raises:
    UserError: naming the reward, and the first question without one.
  """
  for name, right in answers:
    if right is None:
      raise UserError(
        f"{bound.where}: expected a right answer to every question, as"
        f" {bound.name} compares with it, found none to {name}; add 'answer' to"
        " the data, or take the reward out"
      )
