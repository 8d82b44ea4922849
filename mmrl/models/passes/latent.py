"""Inputs of answers with latent segments: states that are fed back.

A segment's inner position has the state of the position before it as its
input. These states are computed first, segment after segment: the text before
one in chunks, then its positions one by one. One pass over whole answers
(`extend`) follows, whose inputs are known: log-probabilities, attention and
hidden states come from there, as those of any answer.

All of it is differentiated, the recurrence included (as in Coconut, arXiv
2412.06769).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import groups
from mmrl.models import layers, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention
from mmrl.models.passes import segments
from mmrl.types import Prefix, PyTree, pytree

# Positions of text that are computed at once, and skipped where no answer has
# text.
_CHUNK = 32


@pytree
class Past:
  """Keys and values of earlier positions, and which of them are seen."""

  keys: Float[Array, "L P G K U head"]
  values: Float[Array, "L P G K U head"]
  seen: Bool[Array, "P G U"]


def embed(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  tokens: Int[Array, "P G R"],
) -> Float[Array, "P G R D"]:
  """Computes the inputs of answers: embeddings, and states in segments.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `vlm.prefill`.
    tokens: of the answers.
  """
  inputs = vlm.embed(params, config, tokens)
  latent = config.latent
  if latent is None or latent.length == 1:
    return inputs
  start = segments.starts(tokens, latent)
  return fill(params, config, prefix, inputs, start)


def fill(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  inputs: Float[Array, "P G R D"],
  start: Int[Array, "P G N"],
) -> Float[Array, "P G R D"]:
  """Replaces the inputs of inner positions by the states before them.

  Args:
    params, config, prefix: see `embed`.
    inputs: embeddings of the answers.
    start: where segments open, in order; R or more where there is none.
  """
  assert config.latent is not None
  length = config.latent.length

  def one(carry, start):
    def go(carry):
      cache, inputs, begin = carry
      cache, state = _text(params, config, prefix, cache, inputs, begin, start)
      own, states = _segment(params, config, prefix, cache, state, start)
      at = start[..., None] + 1 + _count(length - 2)
      cache = _write(cache, own, at)
      inputs = _put(inputs, at, states)
      return cache, inputs, start + length - 1

    there = (start < inputs.shape[2]).any()
    return jax.lax.cond(there, go, lambda carry: carry, carry), None

  cache = _empty(config, prefix, *inputs.shape[1:3])
  carry = cache, inputs, jnp.zeros(start.shape[:2], start.dtype)
  # The first one's text and the last one's keys are seldom needed, but a scan
  # is compiled once.
  (_, inputs, _), _ = jax.lax.scan(one, carry, jnp.moveaxis(start, -1, 0))
  return inputs


def _text(params, config, prefix, cache, inputs, begin, start):
  """Runs text from `begin` up to and with the token that opens a segment.

  Returns:
    The keys and values of all positions so far, and that token's state.
  """
  room = inputs.shape[2]
  count = min(_CHUNK, room)

  def chunk(carry, first):
    at = first + begin[..., None] + _count(count)
    real = (at <= start[..., None]) & (start < room)[..., None]

    def go(carry):
      cache, state = carry
      taken = jnp.minimum(at, room - 1)[..., None]
      x = jnp.take_along_axis(inputs, taken, axis=2)
      past = Past(cache.keys, cache.values, cache.seen & _before(room, at))
      x, new = _run(params, config, prefix, (past,), x, at)
      cache = _write(cache, new, jnp.where(real, at, room))
      place = (start - at[..., 0])[..., None]
      last = jnp.clip(place, 0, count - 1)[..., None]
      found = jnp.take_along_axis(x, last, axis=2)[..., 0, :]
      here = (place >= 0) & (place < count)
      return cache, jnp.where(here, found, state)

    return jax.lax.cond(real.any(), go, lambda carry: carry, carry), None

  state = jnp.zeros_like(inputs[:, :, 0])
  if config.remat:
    chunk = jax.checkpoint(chunk, prevent_cse=False)
  firsts = jnp.arange(0, room, count)
  (cache, state), _ = jax.lax.scan(chunk, (cache, state), firsts)
  return cache, state


def _segment(params, config, prefix, cache, state, start):
  """Runs the inner positions of a segment, one after the other.

  Returns:
    Their keys and values, and their inputs [P, G, K - 2, D].
  """
  count = config.latent.length - 2
  room = cache.seen.shape[-1]
  past = Past(
    cache.keys, cache.values, cache.seen & _before(room, start[..., None] + 1)
  )

  def step(carry, n):
    own, state = carry
    fed = feedback(params, config, state)
    at = start[..., None] + 1 + n
    seen = jnp.broadcast_to(jnp.arange(count) < n, own.seen.shape)
    before = Past(own.keys, own.values, seen)
    x, new = _run(params, config, prefix, (past, before), fed[:, :, None], at)

    def write(x, new):
      return jax.lax.dynamic_update_slice_in_dim(x, new, n, axis=4)

    own = Past(
      write(own.keys, new.keys), write(own.values, new.values), own.seen
    )
    return (own, x[:, :, 0]), fed

  if config.remat:
    step = jax.checkpoint(step, prevent_cse=False)
  own = _empty(config, prefix, state.shape[1], count)
  (own, _), fed = jax.lax.scan(step, (own, state), jnp.arange(count))
  return own, jnp.moveaxis(fed, 0, 2)


def feedback(
  params: PyTree, config: ModelConfig, state: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
  """Returns the input that follows from a state before the final norm."""
  assert config.latent is not None
  if not config.latent.pre_norm:
    state = vlm.final_norm(params, config, state)
  if config.latent.stop_feedback_grad:
    state = jax.lax.stop_gradient(state)
  return state


def _run(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  pasts: tuple[Past, ...],
  inputs: Float[Array, "P G C D"],
  at: Int[Array, "P G C"],
) -> tuple[Float[Array, "P G C D"], Past]:
  """Runs C positions of each answer after those of `pasts`.

  Returns:
    The last layer's output, before the final norm, and keys and values.
  """
  positions = prefix.next_position[:, None, None] + at
  angles = attention.rotary_angles(
    jnp.broadcast_to(positions[..., None], (*positions.shape, 3)),
    config.text.rotary_axes,
    config.text.rope_theta,
  )
  block = layers.DecoderBlock(config)
  count = at.shape[-1]
  own = jnp.broadcast_to(
    jnp.tri(count, dtype=bool), (*at.shape[:2], count, count)
  )
  seen = [
    jnp.broadcast_to(p.seen[..., None, :], (*at.shape, p.seen.shape[-1]))
    for p in pasts
  ]
  mask = jnp.concatenate([*seen, own], axis=-1)[:, :, None, :, None]

  def body(x, layer):
    x = groups.over_answers(x)
    layer_params, _, prefix_keys, prefix_values, past = layer

    def attend(queries, keys, values):
      kept = jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)
      all_keys, all_values = (
        jnp.concatenate([*(p[i] for p in past), kept[i]], axis=3)
        for i in range(2)
      )
      out = attention.attend_prefix(
        queries,
        jnp.swapaxes(prefix_keys, 1, 2),
        jnp.swapaxes(prefix_values, 1, 2),
        prefix.mask,
        all_keys,
        all_values,
        mask,
      )
      return out, kept

    return layers.run(block, layer_params, x, angles, attend)

  xs = prefix.keys, prefix.values, tuple((p.keys, p.values) for p in pasts)
  x = inputs.astype(config.dtype)
  x, (keys, values) = vlm.scan_layers(body, params, config, x, xs)
  return x, Past(keys, values, jnp.ones(at.shape, bool))


def _empty(
  config: ModelConfig, prefix: Prefix, answers: int, room: int
) -> Past:
  depth, prompts, _, heads, size = prefix.keys.shape
  shape = depth, prompts, answers, heads, room, size
  empty = jnp.zeros(shape, prefix.keys.dtype)
  return Past(empty, empty, jnp.zeros((prompts, answers, room), bool))


def _before(room: int, at: Int[Array, "P G C"]) -> Bool[Array, "P G U"]:
  return _count(room) < at[..., :1]


def _count(size: int) -> Int[Array, "1 1 n"]:
  return jnp.arange(size)[None, None]


def _put(
  x: Float[Array, "P G R D"],
  at: Int[Array, "P G C"],
  new: Float[Array, "P G C D"],
) -> Float[Array, "P G R D"]:
  """Writes C positions of each answer; those beyond R are dropped."""

  def one(x, at, new):
    return x.at[at].set(new, mode="drop")

  return jax.vmap(jax.vmap(one))(x, at, new.astype(x.dtype))


def _write(cache: Past, new: Past, at: Int[Array, "P G C"]) -> Past:
  """Writes keys and values at positions; those beyond R are dropped."""

  def one(x, at, new):  # [L, K, R, head]
    return x.at[:, :, at].set(new, mode="drop")

  put = jax.vmap(jax.vmap(one, (1, 0, 1), 1), (1, 0, 1), 1)
  seen = jax.vmap(jax.vmap(lambda x, at: x.at[at].set(True, mode="drop")))
  return Past(
    put(cache.keys, at, new.keys),
    put(cache.values, at, new.values),
    seen(cache.seen, at),
  )
