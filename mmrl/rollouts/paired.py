"""Questions that are asked in pairs, whose answers a reward compares."""

from collections.abc import Mapping
from typing import Any

from mmrl.errors import UserError
from mmrl.rollouts.source import Setup, Source, Wrapper


class Paired(Wrapper):
  """Asks each question's partner after it."""

  def __init__(self, setup: Setup, inner: Source):
    super().__init__(inner)
    del setup
    self.together = 2

  def open(self, questions, processor):
    super().open(questions, processor)
    first = questions[0]
    if first.partner is None:
      raise UserError(
        f"config.rollout: expected data with pairs of questions, found none to"
        f" {first.name}; take a source that has them, such as Figures with"
        " pairs=True, or take 'paired' out"
      )


def paired(setup: Setup, *, of: Mapping[str, Any]) -> Source:
  """Asks about both of a pair, one after the other: P prompts are P / 2 pairs.

  Each is a group of its own; a reward may read both. It is the outermost of
  wrappers, and holds none that draws groups again.

  Args:
    setup: of the run.
    of: spec of where answers come from.

  Raises:
    UserError: if P isn't even, or single groups are drawn again.
  """
  if setup.prompts % 2:
    raise UserError(
      "config.rollout.prompts: expected an even number, two for each pair,"
      f" found {setup.prompts}"
    )
  inner = setup.inner(of, "config.rollout.of")
  if inner.draws or inner.together != 1:
    raise UserError(
      "config.rollout.of: expected answers to single questions that are drawn"
      f" once, found {of.get('name')!r}; pairs would be torn apart"
    )
  return Paired(setup, inner)
