"""State of a run that training changes and checkpoints store."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import optax

from mmrl.losses.weight import Norms
from mmrl.models import parameters
from mmrl.train.objective import Term
from mmrl.types import PyTree, pytree


@pytree
class State:
  """State of a run; training changes all but `frozen`.

  Attributes:
    step: number of rollout batches done.
    trainable: parameters that the optimiser updates, by path; those that terms
      add among them.
    frozen: the other parameters, by path.
    optimizer: optimiser state.
    running: running values of stateful terms, by their names.
    averages: averages of `trainable`, by the names of the models that have
      them.
    norms: what weights follow from, of the terms that have a share of the
      gradient, by their names.
  """

  step: Int[Array, ""]
  trainable: dict[str, Any]
  frozen: dict[str, Any]
  optimizer: PyTree
  running: dict[str, PyTree]
  averages: dict[str, "Averaged"]
  norms: dict[str, Norms]

  @property
  def params(self) -> PyTree:
    """Merges trained and frozen parameters into the model's nested tree."""
    trained = {
      path: leaf
      for path, leaf in self.trainable.items()
      if not parameters.is_of_term(path)
    }
    return parameters.merge(trained, self.frozen)


def advance(
  state: State,
  grads: dict[str, Any],
  statistics: Mapping[str, PyTree],
  *,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  averages: Mapping[str, Any],
) -> State:
  """Makes the state after an optimiser update.

  Args:
    state: before it.
    grads: gradients of what is trained, by path.
    statistics: of the terms with state, by name, over the whole minibatch.
    terms: of the objective.
    optimizer: the optax transformation.
    averages: models that are averages (`train.models.Average`), by name.
  """
  updates, optimizer_state = optimizer.update(
    grads, state.optimizer, state.trainable
  )
  trainable = optax.apply_updates(state.trainable, updates)
  return State(
    step=state.step,
    trainable=trainable,
    frozen=state.frozen,
    optimizer=optimizer_state,
    running={
      term.name: term.update(state.running[term.name], statistics[term.name])
      for term in terms
      if term.update
    },
    averages={
      name: advance_average(state.averages[name], trainable, **vars(one))
      for name, one in averages.items()
    },
    norms=state.norms,
  )


def unless(empty: Bool[Array, ""], updated: State, state: State) -> State:
  """Returns the updated state, or if `empty` the one before it."""
  return jax.tree.map(
    lambda new, old: jnp.where(empty, old, new), updated, state
  )


@pytree
class Beginning:
  """The policy at step 0, of which only what trains is kept.

  Attributes:
    trainable: parameters at step 0 that differ later, by path.
  """

  trainable: dict[str, Any]

  def params(self, state: State) -> PyTree:
    """Merges them with the frozen parameters, which are the state's own."""
    return parameters.merge(self.trainable, state.frozen)


@pytree
class Averaged:
  """Exponential moving average of the parameters that are trained.

  Attributes:
    updates: number of optimiser updates so far.
    values: float32, whatever the type of the parameters: bfloat16 can't hold
      the small changes of a decay near 1.
  """

  updates: Int[Array, ""]
  values: dict[str, Any]


def start_average(trainable: dict[str, Any]) -> Averaged:
  """Makes the average at step 0, which equals the parameters."""
  values = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
  return Averaged(jnp.zeros((), jnp.int32), values)


def advance_average(
  average: Averaged,
  trainable: dict[str, Any],
  *,
  decay: float | Array,
  every: int,
  rise_over: int = 0,
) -> Averaged:
  """Counts an optimiser update, and averages after each `every` of them.

  average = decay * average + (1 - decay) * parameters

  Of update t the decay is 1 - (1 - decay) (1 + cos(pi t / rise_over)) / 2.
  """
  updates = average.updates + 1
  if rise_over:
    share = jnp.minimum(average.updates / rise_over, 1.0)
    decay = 1 - (1 - decay) * (1 + jnp.cos(jnp.pi * share)) / 2
  rate = jnp.where(updates % every == 0, 1.0 - decay, 0.0)
  values = {
    k: v + rate * (trainable[k].astype(jnp.float32) - v)
    for k, v in average.values.items()
  }
  return Averaged(updates, values)
