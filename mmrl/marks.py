"""What a slot's function may carry besides its signature."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxtyping import Float
import numpy as np

F = TypeVar("F", bound=Callable)


def marked(
  *,
  check: Callable[..., Any] | None = None,
  hint: Callable[..., str] | str | None = None,
  needs_region: Callable[..., bool] | None = None,
  needs_extra: Callable[..., tuple[str, ...]] | tuple[str, ...] = (),
  needs_kinds: tuple[str, ...] = (),
  asks: Callable[..., tuple[str, ...]] | tuple[str, ...] = (),
  needs_answer: Callable[[str, str], None] | None = None,
  applies: Callable[[Any], bool] | None = None,
) -> Callable[[F], F]:
  """Marks a function of a slot, as a decorator.

  Args:
    check: called with the options of a spec while a run is built; raises a
      `UserError` where they don't go together, or a package is missing.
    hint: a text, or what makes one of the options. It is printed once, if the
      reward is 0 for all answers of a run's first batch: likely causes, and
      what to do.
    needs_region: tells from the options whether every question must have a
      marked region, which is then checked before a run starts.
    needs_extra: what must be in `extra` of every question, or what tells it
      from the options; it is checked likewise, where a source lists it.
    needs_kinds: the kinds of questions that the function can read; checked
      likewise.
    asks: roles of the models that a strategy may ask, or what tells them from
      the options.
    needs_answer: called with each question and its right answer before a run
      starts; raises a `UserError` where the answer isn't of the form that the
      function compares with.
    applies: tells of a question (`mmrl.data.Example`) whether a reward has
      anything to grade there. Where it hasn't, its 0 counts in the total, but
      in no metric and no score of a benchmark.
  """

  def mark(function: F) -> F:
    target: Any = function
    if check is not None:
      target.check = check
    if hint is not None:
      target.hint = hint
    if needs_region is not None:
      target.needs_region = needs_region
    if needs_extra:
      target.needs_extra = needs_extra
    if needs_kinds:
      target.needs_kinds = needs_kinds
    if asks:
      target.asks = asks
    if needs_answer is not None:
      target.needs_answer = needs_answer
    if applies is not None:
      target.applies = applies
    return function

  return mark


def where_applies(
  function: Callable, values: Float[np.ndarray, "P G"], examples: Sequence[Any]
) -> Float[np.ndarray, "P G"]:
  """Returns a reward's values to measure: NaN where it doesn't apply.

  Args:
    function: the reward; one without the mark `applies` does everywhere.
    values: of the answers.
    examples: the questions.
  """
  applies = getattr(function, "applies", None)
  if applies is None:
    return values
  there = np.array([applies(one) for one in examples], bool)
  return np.where(there[:, None], values, np.nan)
