"""Jitted programs of a step: probes, rewards, advantages and update."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from mmrl import build
from mmrl.errors import UserError
from mmrl.losses import reduce, weight
from mmrl.losses.weight import Norms
from mmrl.machines.sharding import Layout
from mmrl.models import parameters
from mmrl.models.policy import Forward
from mmrl.names import SCORES
from mmrl.probes.scores import Scorer
from mmrl.rollouts.answers import Reward
from mmrl.train import models as models_lib
from mmrl.train import objective as objective_lib
from mmrl.train import state as state_lib
from mmrl.train.method import Method
from mmrl.train.models import Average
from mmrl.train.objective import Term
from mmrl.train.state import State
from mmrl.types import Batch, PyTree, map_prompts

Fixed = Mapping[str, PyTree]
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Programs:
  """Jitted programs of a step, but those of where answers come from.

  `fixed` holds the parameters of the models that don't change, by name.

  Attributes:
    probe: (state, fixed, batch) -> (fields, numbers to log).
    probes_apart: by the model on whose mesh they run, (its parameters,
      batch) -> fields.
    reward: (state, fixed, batch) -> values of each reward that reads arrays,
      by name.
    prepare: (batch, rewards, key) -> (mask, fields): advantages, weights.
    update: (state, fixed, batch, number of the minibatch) -> (state, numbers
      to log); the state is donated.
    shares: (state, fixed, batch, number of the minibatch) -> (share of each
      term in the gradient, norms of the state with this measurement).
  """

  probe: Callable[..., tuple[dict, dict]]
  probes_apart: Mapping[str, Callable[..., dict]]
  reward: Callable[..., dict]
  prepare: Callable[..., tuple[Array, dict]]
  update: Callable[..., tuple[State, dict]]
  shares: Callable[..., tuple[dict, dict]]


def make_probe(
  scorers: Mapping[str, Scorer], method: Method, layout: Layout
) -> Callable:
  """Makes the program of the probes and measures on the run's mesh.

  Args:
    scorers: by the names that functions use.
    method: of the run.
    layout: of the run.
  """
  needs = {name for bound in method.probes for name in bound.needs}
  scorer = scorers["scorer"]

  def probe(state: State, fixed: Fixed, batch: Batch):
    known: dict[str, Any] = {n: scorers[n] for n in needs & set(scorers)}
    known |= models_lib.parameters_by_name(state, fixed, needs)
    prefix, visual = batch.prefix, batch.visual
    if visual is None and needs & {"visual", "scores_old"}:
      visual = Forward(state.params, scorer.config).vision(batch.prompt.patches)
    if "scores_old" in needs:
      if prefix is None:
        prefix = scorer.prefill(state.params, batch.prompt, visual)
      known["scores_old"] = scorer(state.params, prefix, batch.tokens)
    known["visual"] = visual
    fields: dict[str, Any] = {}
    for bound in method.probes:
      fields |= bound.fields(batch.context(**known))
    if {"sampled", "logprobs_sampler"} <= set(batch.fields):
      # What the policy didn't sample has no mismatch to measure.
      own = batch.fields["sampled"][..., None]
      sampler = batch.fields["logprobs_sampler"]
      fields["logprobs_sampler"] = jnp.where(
        own, sampler, fields["logprobs_old"]
      )
    context = batch.context(**fields)
    measured: dict[str, Array] = {}
    for bound in method.measures:
      measured |= bound(context)
    kept = method.fields | {"logprobs_sampler"}
    fields = {name: x for name, x in fields.items() if name in kept}
    return layout.constrain(fields), measured

  return layout.jit(probe)


def make_probe_apart(
  name: str,
  scorer: Scorer,
  probes: Sequence[build.Bound],
  method: Method,
  layout: Layout,
) -> Callable:
  """Makes the program of the probes of a model on a mesh of its own."""

  def probe(params: PyTree, batch: Batch) -> dict:
    known = {f"scorer_{name}": scorer, f"params_{name}": params}
    fields: dict[str, Any] = {}
    for bound in probes:
      fields |= bound.fields(batch.context(**known))
    fields = {k: x for k, x in fields.items() if k in method.fields}
    return layout.constrain(fields)

  return layout.jit(probe)


def for_probes_apart(batch: Batch) -> Batch:
  """Returns what probes on another mesh can read, to be resharded there."""
  return Batch(batch.prompt, None, batch.tokens, batch.mask, {})


def make_reward(rewards: Sequence[Reward], layout: Layout) -> Callable:
  """Makes the program that computes the rewards that read arrays only.

  Tracing it raises a UserError for a reward of another shape than [P, G].
  """
  read = [reward for reward in rewards if not reward.on_host]
  needs = {name for reward in read for name in reward.bound.needs}

  def reward(state: State, fixed: Fixed, batch: Batch) -> dict:
    known = models_lib.parameters_by_name(state, fixed, needs)
    context, found = batch.context(**known), {}
    for one in read:
      values = jnp.asarray(one.bound(context))
      if values.shape != batch.mask.shape[:2]:
        raise UserError(
          f"{one.bound.where}: expected {one.bound.name} to return a number for"
          " each of {} x {} answers, found shape {}".format(
            *batch.mask.shape[:2], values.shape
          )
        )
      found[one.name] = values
    return layout.constrain(found)

  return layout.jit(reward)


def make_prepare(
  method: Method, layout: Layout, *, mask_truncated: bool
) -> Callable:
  """Makes the program of advantages and of weights that read no current scores.

  With `mask_truncated`, answers without an end count in advantages only: their
  masks are cleared before the weights.
  """

  def prepare(batch: Batch, rewards: Array, key: Array) -> tuple[Array, dict]:
    fields: dict[str, Any] = {"rewards": rewards}
    if method.advantage:
      context = batch.context(key=key, **fields)
      fields["advantages"] = method.advantage.array(context, 2, 3)
    mask = batch.mask
    if mask_truncated:
      mask &= batch.fields["ended"][..., None]
    batch = dataclasses.replace(batch, mask=mask)
    weights = jnp.ones(mask.shape, jnp.float32)
    for bound in method.token_weights:
      if not reads_scores(bound):
        weights *= bound.array(batch.context(key=key, **fields), 3)
    fields["token_weights"] = weights
    return layout.constrain((mask, fields))

  return layout.jit(prepare)


def reads_scores(token_weight: build.Bound) -> bool:
  """Tells whether a token weight depends on the current parameters."""
  return bool(set(SCORES) & set(token_weight.needs))


def make_loss(
  scorer: Scorer, terms: Sequence[Term], token_weights: Sequence[build.Bound]
) -> Callable:
  """Makes the loss: prefills once, extends G answers, reduces the terms.

  `params` holds the parameters of stateful terms under `terms`, `known` what
  else the terms read. `parts` of the loss is the number of parts of the
  minibatch, of which the batch is one; for `signals` see `objective`.
  """
  late = [bound for bound in token_weights if reads_scores(bound)]
  reads = any("attention" in bound.needs for bound in late)
  if not reads and not any(term.needs_attention for term in terms):
    scorer = dataclasses.replace(scorer, layers=())
  layers = {n for t in terms if t.layers for n in t.layers(scorer.config)}
  scorer = dataclasses.replace(scorer, hidden_layers=tuple(sorted(layers)))
  sees = any("visual" in term.bound.needs for term in terms)

  def loss(
    params: PyTree,
    batch: Batch,
    coefficients: Mapping[str, Array],
    *,
    known: Mapping[str, Any] = NOTHING,
    axis_name: str | None = None,
    parts: int = 1,
    signals: bool = False,
  ):
    forward = Forward(params, scorer.config)
    if sees and batch.visual is None:
      visual = forward.vision(batch.prompt.patches)
      batch = dataclasses.replace(batch, visual=visual)
    prefix = scorer.prefill(params, batch.prompt, batch.visual)
    scores = scorer(params, prefix, batch.tokens)
    current = {
      "params": params,
      "forward": forward,
      "learned": params.get(parameters.TERMS, {}),
      "minibatch": objective_lib.minibatch(terms, parts, axis_name),
    }
    context = batch.context(scores, **{**known, **current})
    for bound in late:
      weight = jax.lax.stop_gradient(bound.array(context, 3))
      context["token_weights"] = context["token_weights"] * weight
    return objective_lib.objective(
      terms, context, coefficients, axis_name=axis_name, signals=signals
    )

  return loss


def _known(terms: Sequence[Term], state: State, fixed: Fixed) -> dict[str, Any]:
  """Returns what terms read besides batch, scores and own parameters."""
  needs = {name for term in terms for name in term.bound.needs}
  found = models_lib.parameters_by_name(state, fixed, needs)
  found = {k: jax.lax.stop_gradient(v) for k, v in found.items()}
  return found | {"running": state.running, "norms": state.norms}


def make_update(
  loss: Callable,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  averages: Mapping[str, Average],
  layout: Layout,
  *,
  accumulate: int,
  dtype: str,
) -> Callable:
  """Makes the program of one optimiser update, in `accumulate` parts.

  The minibatch is one of `layout.parts` of the rollout batch. The coefficients
  of reductions are computed over the whole minibatch before it is cut, so the
  parts add up to exactly the loss of the whole. A minibatch without a signal
  (`mmrl.losses.signal`), for a model that computes in `dtype`, changes nothing.
  """

  def gradient(state: State, fixed: Fixed, batch: Batch, coefficients):
    known = _known(terms, state, fixed)

    def of_trainable(trainable):
      where = parameters.merge(trainable, state.frozen), batch, coefficients
      return loss(*where, known=known, parts=accumulate, signals=True)

    return jax.grad(of_trainable, has_aux=True)(state.trainable)

  def update(
    state: State, fixed: Fixed, batch: Batch, minibatch: Int[Array, ""]
  ):
    batch = layout.cut(batch, layout.parts, minibatch)
    coefficients = objective_lib.reduction_coefficients(
      terms, batch.mask, batch.fields
    )
    if accumulate == 1:
      grads, found = gradient(state, fixed, batch, coefficients)
    else:

      def of_part(part):
        return gradient(
          state, fixed, *layout.cut((batch, coefficients), accumulate, part)
        )

      grads, found = _accumulate(of_part, accumulate)
    metrics, statistics = found
    metrics = reduce.finish(metrics)
    metrics["gradient/norm"] = optax.tree.norm(grads)
    factors = weight.current(objective_lib.weights_of(terms), state.norms)
    metrics |= {f"weight/{name}": factors[name] for name in state.norms}
    empty = objective_lib.without_signal(terms, metrics, dtype)
    updated = state_lib.advance(
      *(state, grads, statistics),
      terms=terms,
      optimizer=optimizer,
      averages=averages,
    )
    if empty is not None:
      updated = state_lib.unless(empty, updated, state)
      metrics["gradient/skipped"] = empty.astype(jnp.float32)
    updated = jax.lax.with_sharding_constraint(updated, layout.of(updated))
    return updated, metrics

  return layout.jit(update, donate_argnums=0)


def _accumulate(of_part: Callable, parts: int):
  """Adds up gradients, metrics and statistics of a minibatch's parts."""
  # The scan's initial carry needs the shapes of gradients and metrics.
  shapes = jax.eval_shape(of_part, 0)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    grads, (metrics, statistics) = total
    more, (measured, counted) = of_part(part)
    metrics = reduce.add(metrics, measured)
    statistics = jax.tree.map(jnp.add, statistics, counted)
    return (jax.tree.map(jnp.add, grads, more), (metrics, statistics)), None

  total, _ = jax.lax.scan(add, zeros, jnp.arange(parts))
  return total


def make_shares(
  scorer: Scorer,
  terms: Sequence[Term],
  token_weights: Sequence[build.Bound],
  layout: Layout,
  *,
  prompts: int,
) -> Callable:
  """Makes the program that computes each term's share of the gradient.

      share_i = |w_i g_i| / sum_j |w_j g_j|,    g_i the gradient of term i

  It takes one backward pass per term, so it uses only the first `prompts`
  prompts of a minibatch. Weights w that follow from shares are those after
  this measurement.
  """
  weights = objective_lib.weights_of(terms)

  def shares(
    state: State, fixed: Fixed, batch: Batch, minibatch: Int[Array, ""]
  ) -> tuple[dict[str, Array], dict[str, Norms]]:
    batch = layout.cut(batch, layout.parts, minibatch)
    batch = take_prompts(batch, 0, prompts)
    found = {}
    for term in terms:
      alone = dataclasses.replace(term, weight=1.0)
      loss = make_loss(scorer, (alone,), token_weights)
      coefficients = objective_lib.reduction_coefficients(
        (term,), batch.mask, batch.fields
      )
      known = _known((term,), state, fixed)

      def of_trainable(
        trainable, loss=loss, coefficients=coefficients, known=known
      ):
        params = parameters.merge(trainable, state.frozen)
        return loss(params, batch, coefficients, known=known)[0]

      found[term.name] = optax.tree.norm(
        jax.grad(of_trainable)(state.trainable)
      )
    norms = weight.measure(weights, state.norms, found)
    norms = jax.lax.with_sharding_constraint(norms, layout.of(norms))
    factors = weight.current(weights, norms)
    weighed = {name: abs(factors[name]) * x for name, x in found.items()}
    total = sum(weighed.values())
    safe = jnp.where(total > 0, total, 1.0)
    return {f"gradient/share_{k}": v / safe for k, v in weighed.items()}, norms

  return layout.jit(shares)


def take_prompts(batch: Batch, start: int, count: int) -> Batch:
  """Slices prompts `start` to `start + count` of a batch, and their pictures.

  Both numbers are multiples of the prompts whose pictures are packed together
  (`Run.pack`).
  """
  prompts = batch.mask.shape[0]

  def take(x):
    group = prompts // x.shape[0]
    return x[start // group : (start + count) // group]

  return map_prompts(take, batch)
