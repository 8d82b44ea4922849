"""Jitted programs of a run: rollout, probes, rewards, advantages and update."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from mmrl import build
from mmrl.machines.sharding import Layout
from mmrl.models import parameters
from mmrl.probes.policies import Scorer
from mmrl.probes.region import region_share
from mmrl.rollouts import sampler
from mmrl.rollouts.answers import Reward
from mmrl.train import objective as objective_lib
from mmrl.train.objective import Term
from mmrl.types import (
  Batch,
  Prompt,
  PyTree,
  Rollout,
  map_prompts,
  pytree,
)

# Fields that the scorer computes for a minibatch under current parameters.
SCORES = ("logprobs", "entropies", "attention", "logits")


@pytree
class State:
  """State of a run that checkpoints store; training changes all but `frozen`.

  Attributes:
    step: number of rollout batches done.
    trainable: parameters that the optimiser updates, by path.
    frozen: the other parameters, by path.
    optimizer: optimiser state.
  """

  step: Int[Array, ""]
  trainable: dict[str, Array]
  frozen: dict[str, Array]
  optimizer: PyTree

  @property
  def params(self) -> PyTree:
    """Merges trained and frozen parameters into the model's nested tree."""
    return parameters.merge(self.trainable, self.frozen)


@dataclasses.dataclass(frozen=True)
class Programs:
  """Jitted programs of a run.

  Attributes:
    rollout: (state, prompt, key) -> Rollout.
    probe: (state, params_ref, prompt, rollout) -> fields and metrics.
    teach: (params_teacher, prompt, tokens) -> fields, on the teacher's mesh.
    reward: (fields, prompt, rollout) -> values of each reward that reads
      arrays, by name.
    exchange: see `refill.make_exchange`.
    prepare: (fields, rewards, mask, key, mask of tokens to learn from) ->
      fields with advantages and weights.
    update: (state, batch, number of the minibatch) -> (state, metrics); the
      state is donated.
    shares: (state, batch, number of the minibatch) -> share of each term in
      the gradient.
  """

  rollout: Callable[..., Rollout]
  probe: Callable[..., tuple[dict, dict]]
  teach: Callable[..., dict]
  reward: Callable[..., dict]
  exchange: Callable[..., tuple[Prompt, Rollout]]
  prepare: Callable[..., dict]
  update: Callable[..., tuple[State, dict]]
  shares: Callable[..., dict]


def make_rollout(
  scorer: Scorer, options: Mapping, layout: Layout
) -> Callable[..., Rollout]:
  """Makes the program that samples answers under the training parameters.

  Each prompt has a random key of its own, by its index in the stream of
  questions, so its answers don't depend on its device.
  """

  def rollout(state: State, prompt: Prompt, key: Array) -> Rollout:
    prompts = prompt.mask.shape[0]
    keys = jax.random.split(key, prompts)[layout.order(prompts)]
    found = sampler.rollout(
      state.params,
      scorer.config,
      prompt,
      keys,
      attention_layers=scorer.layers,
      **options,
    )
    lead = {
      name: jax.lax.with_sharding_constraint(x, layout.prompts)
      for name, x in vars(found).items()
      if name != "prefix"
    }
    return Rollout(**lead, prefix=found.prefix)

  return layout.jit(rollout)


def make_probe(
  scorer: Scorer, probes: Sequence[build.Bound], layout: Layout
) -> Callable:
  """Makes the program that runs all probes and measures the rollout.

  Two metrics compare sampler and scorer: the largest difference of
  log-probabilities, and the share of answer tokens with

      |p_scorer / p_sampler - 1| > 1 %  and  > 10 %.
  """

  def probe(state: State, params_ref: PyTree, prompt: Prompt, rollout: Rollout):
    context = {
      "scorer": scorer,
      "params": state.params,
      "params_ref": params_ref,
      "prompt": prompt,
      "rollout": rollout,
      "scores_old": scorer(state.params, rollout.prefix, rollout.tokens),
    }
    fields: dict[str, Array] = {}
    for bound in probes:
      fields |= bound(context)._asdict()
    # Experts weren't sampled: their tokens have no mismatch to measure.
    sampled, own = rollout.logprobs, jnp.ones(rollout.mask.shape[:2], bool)
    if rollout.expert is not None:
      fields["expert"], own = rollout.expert, ~rollout.expert
      sampled = jnp.where(own[..., None], sampled, fields["logprobs_old"])
    mask = rollout.mask & own[..., None]
    fields["logprobs_sampler"] = sampled
    gap = jnp.where(mask, fields["logprobs_old"] - sampled, 0.0)

    def outside(bound):
      return (jnp.abs(jnp.expm1(gap)) > bound).sum() / mask.sum()

    metrics = {
      "rollout/sampler_scorer_gap": jnp.abs(gap).max(),
      "rollout/sampler_scorer_outside_1_percent": outside(0.01),
      "rollout/sampler_scorer_outside_10_percent": outside(0.10),
      "rollout/length": mask.sum() / own.sum(),
      "attention/region": jnp.nanmean(
        region_share(fields["attention_old"], prompt, mask)
      ),
    }
    return layout.constrain(fields), metrics

  return layout.jit(probe)


def make_teach(
  scorer: Scorer,
  probes: Sequence[build.Bound],
  named: Collection[str],
  layout: Layout,
) -> Callable:
  """Makes the program of the teacher's probes; keeps the fields in `named`."""

  def teach(params_teacher: PyTree, prompt: Prompt, tokens: Array) -> dict:
    context = {
      "scorer_teacher": scorer,
      "params_teacher": params_teacher,
      "prompt": prompt,
      "tokens": tokens,
    }
    fields: dict[str, Any] = {}
    for bound in probes:
      fields |= bound(context)._asdict()
    fields = {name: x for name, x in fields.items() if name in named}
    return layout.constrain(fields)

  return layout.jit(teach)


def make_reward(
  rewards: Sequence[Reward], eos_token_id: int, layout: Layout
) -> Callable:
  """Makes the program that computes the rewards that read arrays only."""
  read = [reward for reward in rewards if not reward.on_host]

  def reward(fields: dict, prompt: Prompt, rollout: Rollout) -> dict:
    context = fields | {
      "mask": rollout.mask,
      "tokens": rollout.tokens,
      "prompt": prompt,
      "length": rollout.mask.sum(-1),
      "ended": (rollout.tokens == eos_token_id).any(-1),
    }
    return layout.constrain({one.name: one.bound(context) for one in read})

  return layout.jit(reward)


def make_prepare(
  advantage: build.Bound, token_weights: Sequence[build.Bound], layout: Layout
) -> Callable:
  """Makes the program of advantages and of weights that read no current scores.

  `learned`, if given, masks the tokens to learn from. Advantages are computed
  over all answers, token weights over `learned`.
  """

  def prepare(
    fields: dict,
    rewards: Array,
    mask: Array,
    key: Array,
    learned: Array | None = None,
  ) -> dict:
    fields = dict(fields, rewards=rewards)
    context = dict(fields, mask=mask, key=key)
    context["advantages"] = fields["advantages"] = advantage(context)
    context["mask"] = mask if learned is None else learned
    weights = jnp.ones(mask.shape, jnp.float32)
    for bound in token_weights:
      if not reads_scores(bound):
        weights *= bound(context)
    return layout.constrain(fields | {"token_weights": weights})

  return layout.jit(prepare)


def reads_scores(token_weight: build.Bound) -> bool:
  """Tells whether a token weight depends on the current parameters."""
  return bool(set(SCORES) & set(token_weight.needs))


def make_loss(
  scorer: Scorer, terms: Sequence[Term], token_weights: Sequence[build.Bound]
) -> Callable:
  """Makes the loss: prefills once, extends G answers, reduces the terms.

  `parts` of the loss is the number of parts of the minibatch, of which the
  batch is one.
  """
  late = [bound for bound in token_weights if reads_scores(bound)]
  reads = any("attention" in bound.needs for bound in late)
  if not reads and not any(term.needs_attention for term in terms):
    scorer = dataclasses.replace(scorer, layers=())

  def loss(
    params: PyTree,
    batch: Batch,
    weights: Mapping[str, Array],
    *,
    axis_name: str | None = None,
    parts: int = 1,
  ):
    prefix = scorer.prefill(params, batch.prompt, batch.visual)
    scores = scorer(params, prefix, batch.tokens)
    fields = dict(batch.fields, mask=batch.mask)
    minibatch = objective_lib.minibatch(terms, parts, axis_name)
    context = dict(fields, **vars(scores), minibatch=minibatch)
    for bound in late:
      fields["token_weights"] *= jax.lax.stop_gradient(bound(context))
    return objective_lib.objective(
      terms, scores, fields, weights, axis_name=axis_name
    )

  return loss


def make_update(
  loss: Callable,
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  layout: Layout,
  *,
  accumulate: int,
) -> Callable:
  """Makes the program of one optimiser update, in `accumulate` parts.

  The minibatch is one of `layout.parts` of the rollout batch. The weights of
  reductions are computed over the whole minibatch before it is cut, so the
  parts add up to exactly the loss of the whole.
  """

  def gradient(state: State, batch: Batch, weights):
    def of_trainable(trainable):
      params = parameters.merge(trainable, state.frozen)
      return loss(params, batch, weights, parts=accumulate)

    return jax.grad(of_trainable, has_aux=True)(state.trainable)

  def update(state: State, batch: Batch, minibatch: Int[Array, ""]):
    batch = layout.cut(batch, layout.parts, minibatch)
    weights = objective_lib.reduction_weights(terms, batch.mask, batch.fields)
    if accumulate == 1:
      grads, metrics = gradient(state, batch, weights)
    else:

      def of_part(part):
        return gradient(state, *layout.cut((batch, weights), accumulate, part))

      # The scan's initial carry needs the shapes of gradients and metrics.
      shapes = jax.eval_shape(of_part, 0)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

      def add(total, part):
        (grads, metrics), (more, measured) = total, of_part(part)
        metrics = objective_lib.add_metrics(metrics, measured)
        return (jax.tree.map(jnp.add, grads, more), metrics), None

      (grads, metrics), _ = jax.lax.scan(add, zeros, jnp.arange(accumulate))
    metrics["gradient/norm"] = optax.tree.norm(grads)
    updates, optimizer_state = optimizer.update(
      grads, state.optimizer, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    state = dataclasses.replace(
      state, trainable=trainable, optimizer=optimizer_state
    )
    state = jax.lax.with_sharding_constraint(state, layout.of(state))
    return state, metrics

  return layout.jit(update, donate_argnums=0)


def make_shares(
  scorer: Scorer,
  terms: Sequence[Term],
  token_weights: Sequence[build.Bound],
  layout: Layout,
  *,
  prompts: int,
) -> Callable:
  """Makes the program that computes each term's share of the gradient.

      share_i = |g_i| / sum_j |g_j|,    g_i the gradient of weight_i * term_i

  It takes one backward pass per term, so it uses only the first `prompts`
  prompts of a minibatch.
  """

  def shares(
    state: State, batch: Batch, minibatch: Int[Array, ""]
  ) -> dict[str, Array]:
    batch = layout.cut(batch, layout.parts, minibatch)
    batch = take_prompts(batch, 0, prompts)
    norms = {}
    for term in terms:
      loss = make_loss(scorer, (term,), token_weights)
      weights = objective_lib.reduction_weights(
        (term,), batch.mask, batch.fields
      )

      def of_trainable(trainable, loss=loss, weights=weights):
        params = parameters.merge(trainable, state.frozen)
        return loss(params, batch, weights)[0]

      norms[term.name] = optax.tree.norm(
        jax.grad(of_trainable)(state.trainable)
      )
    total = sum(norms.values())
    safe = jnp.where(total > 0, total, 1.0)
    return {f"gradient/share_{k}": v / safe for k, v in norms.items()}

  return layout.jit(shares)


def take_prompts(batch: Batch, start: int, count: int) -> Batch:
  """Slices prompts `start` to `start + count` of a batch, and their pictures.

  Both numbers are multiples of the prompts whose pictures are packed together
  (`Run.group`).
  """
  prompts = batch.mask.shape[0]

  def take(x):
    group = prompts // x.shape[0]
    return x[start // group : (start + count) // group]

  return map_prompts(take, batch)
