"""Terms with state: parameters of their own, and running values."""

from collections.abc import Callable
from typing import NamedTuple


class Stateful(NamedTuple):
  """A loss term with state, like an optax transformation.

  A function of this package whose return annotation is `Stateful` makes one
  from its options. State is saved in checkpoints and resumed.

  Attributes:
    init: (key, model config) -> (learned, running): nested dicts of arrays, and
      a tree of arrays. `learned` is trained with the policy's parameters, by
      the same optimiser; `running` changes by `update` only.
    term: a function of named data, among them `learned` and `running`; returns
      (unreduced term, statistics), a tree of sums over what it has read.
    update: (running, statistics) -> running, after each optimiser update. The
      statistics are those of the whole minibatch: sums over all its parts.
  """

  init: Callable
  term: Callable
  update: Callable
