"""What a loss term may have besides its values: numbers to log, and state."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array, Float


class Measured(NamedTuple):
  """Values of a loss term, and numbers to log.

  Attributes:
    values: the unreduced term.
    numbers: arrays of the shape of `values`, by name; NaN where one doesn't
      apply. Each is logged as its mean over where it does, weighed by the
      coefficients of the term's reduction.
  """

  values: Float[Array, "P *rest"]
  numbers: Mapping[str, Array]


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
    layers: model config -> decoder layers whose output at the answers, before
      the final norm, the term reads as `hidden`, a dict by layer.
  """

  init: Callable
  term: Callable
  update: Callable
  layers: Callable = lambda config: ()
