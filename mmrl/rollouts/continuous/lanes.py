"""Programs of continuous batching: what is done to lanes on the device.

A lane holds a prompt and its answer. All lanes write their newest key into the
same column of a ring, so an answer may begin at any of them; tokens and random
numbers are in rings, too.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models import decoding, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.rollouts import decode_loop
from mmrl.rollouts.decode_loop import Decoder, State
from mmrl.types import Prefix, PyTree, pytree


@runtime_checkable
class Way(Protocol):
  """How tokens are drawn, a pytree; such as `sampler.Sampling`.

  `numbers` makes the random numbers of an answer from its key, [1, R, N].
  """

  def numbers(self, key: Any, answers: int, length: int) -> Array: ...

  def draw(
    self, config: ModelConfig, decoders: tuple[Decoder, ...]
  ) -> decode_loop.Draw: ...


@pytree
class Lanes:
  """What changes as lanes are decoded.

  Attributes:
    decoders: of each model, with the prompts of all lanes and without weights.
    state: of the answers, one of each lane.
    uniform: their random numbers, in the columns of their tokens.
  """

  decoders: tuple[Decoder, ...]
  state: State
  uniform: Float[Array, "P 1 R N"]


# The lanes that a program is given are gone after it.
_of_lanes = functools.partial(
  jax.jit, static_argnames=("config",), donate_argnames=("lanes",)
)


@functools.partial(jax.jit, static_argnames=("config", "attention_layers"))
def prefill(params, config, prompt, attention_layers) -> tuple[Prefix, ...]:
  def one(params):
    visual = tower.vision(params, config, prompt.patches)
    return vlm.prefill(
      params, config, prompt, visual, attention_layers=attention_layers
    )

  return tuple(map(one, params))


@functools.partial(
  jax.jit, static_argnames=("config", "lanes", "size", "length")
)
def open_lanes(params, config, way, key, lanes: int, size: int, length: int):
  """Returns the weights as they are decoded with, and free lanes."""
  text = config.text
  shape = (lanes, size, text.num_key_value_heads, text.head_dim)
  keys = jnp.zeros((text.num_hidden_layers, *shape), config.dtype)
  none = Prefix(
    keys=keys,
    values=keys,
    mask=jnp.zeros((lanes, size), bool),
    next_position=jnp.zeros(lanes, jnp.int32),
    last_hidden=jnp.zeros((lanes, text.hidden_size), config.dtype),
  )
  decoders = tuple(decode_loop.make_decoder(p, config, none) for p in params)
  number = way.numbers(key, 1, length)
  uniform = jnp.zeros((lanes, *number.shape))
  start = jnp.zeros(lanes, jnp.int32)
  found = _started(config, way, decoders, uniform, start, None)
  return tuple(map(_weights, decoders)), found


def _started(config, way, decoders, uniform, start, room) -> Lanes:
  """Begins answers in lanes of their own, at column `start` of the ring."""
  draw = way.draw(config, decoders)
  state = decode_loop.begin(draw, config, decoders, uniform)
  length = uniform.shape[2]
  room = room or decode_loop.rooms(length)[0]
  caches = tuple(
    dataclasses.replace(
      decoding.empty_cache(decoder.layers, 1, room), start=start
    )
    for decoder in decoders
  )
  done = state.done | (length == 1)
  state = dataclasses.replace(state, done=done, caches=caches)
  return Lanes(tuple(map(_without_weights, decoders)), state, uniform)


@_of_lanes
def admit(weights, lanes: Lanes, config, way, prefixes, key, lane) -> Lanes:
  """Begins an answer, and puts it into a lane."""
  state = lanes.state
  length, cache = state.tokens.shape[2], state.caches[0]
  size = lanes.decoders[0].prefix.mask.shape[1]
  decoders = tuple(
    decode_loop.Decoder(params, decoding.take_apart(params, prefix), prefix)
    for (params, _), prefix in zip(weights, prefixes, strict=True)
  )
  uniform = way.numbers(key, 1, length)[None]
  start = jnp.full(1, cache.length)
  room = decoding.capacity(cache)
  new = _started(config, way, decoders, uniform, start, room)

  def in_ring(x):
    return jnp.roll(x, start[0] % length, axis=2)

  state = dataclasses.replace(
    new.state,
    tokens=in_ring(new.state.tokens),
    records=jax.tree.map(in_ring, new.state.records),
  )
  new = Lanes(
    tuple(_padded(decoder, size) for decoder in new.decoders),
    state,
    in_ring(uniform),
  )

  def put(x, new, axis):
    return jax.lax.dynamic_update_slice_in_dim(x, new, lane, axis)

  return _by_lane(put, lanes, new)


def _starts(state: State) -> Int[Array, "P"]:
  """Returns the columns of the lanes' first keys."""
  start = state.caches[0].start
  assert start is not None
  return start


@_of_lanes
def run(weights, lanes: Lanes, config, way, busy: Bool[Array, "P"]):
  """Decodes until a busy lane's answer has ended, or the ring is full.

  Returns:
    The lanes; which are done, the most keys of an answer that isn't, and how
    many tokens were decoded.
  """
  decoders = tuple(map(_with_weights, weights, lanes.decoders))
  draw = way.draw(config, decoders)
  length, room = (
    lanes.uniform.shape[2],
    decoding.capacity(lanes.state.caches[0]),
  )

  def longest(state: State):
    under_way = busy & ~state.done[:, 0]
    count = state.caches[0].length - _starts(state)
    return jnp.where(under_way, count, 0).max()

  def going(state: State):
    return ~(busy & state.done[:, 0]).any() & (longest(state) < room)

  def step(state: State):
    state = decode_loop.advance(draw, config, decoders, lanes.uniform, state)
    drawn = state.step - _starts(state)
    done = state.done | (drawn >= length)[:, None]
    return dataclasses.replace(state, done=done)

  state = jax.lax.while_loop(going, step, lanes.state)
  steps = state.step - lanes.state.step
  numbers = state.done[:, 0], longest(state), steps
  return dataclasses.replace(lanes, state=state), numbers


@functools.partial(jax.jit, static_argnames=("config",))
def taken(config, state: State, lane):
  """Takes an answer out of the ring."""
  start = _starts(state)[lane]
  length = state.tokens.shape[2]

  def one(x):
    x = jax.lax.dynamic_slice_in_dim(x, lane, 1)
    return jnp.roll(x, -(start % length), axis=2)

  records = jax.tree.map(one, state.records)
  return decode_loop.finished(config, one(state.tokens), records)


@functools.partial(jax.jit, static_argnums=1)
def widen(decoders: tuple[Decoder, ...], size: int) -> tuple[Decoder, ...]:
  """Pads the prompts of lanes to `size` tokens."""
  return tuple(_padded(decoder, size) for decoder in decoders)


@functools.partial(jax.jit, static_argnums=1)
def resize(
  caches: tuple[decoding.Cache, ...], room: int
) -> tuple[decoding.Cache, ...]:
  """Gives the ring another room."""
  return tuple(decoding.resize(cache, room) for cache in caches)


@jax.jit
def keep(lanes: Lanes, kept: Int[Array, "W"]) -> Lanes:
  """Takes some of the lanes."""

  def take(x, axis):
    return jnp.take(x, kept, axis=axis)

  return _by_lane(take, lanes)


def _by_lane(function: Callable, lanes: Lanes, *others: Lanes) -> Lanes:
  """Maps a function of arrays, and the axis of lanes, over all that have one.

  Numbers that lanes share are those of the first.
  """

  def mapped(get: Callable, before: int | None = None):
    """Maps over a part; its arrays have so many axes from that of lanes on."""

    def one(x, *rest):
      axis = 0 if before is None else x.ndim - before
      return function(x, *rest, axis=axis) if x.ndim else x

    return jax.tree.map(one, *map(get, (lanes, *others)))

  def heads(x):  # keys and values of the caches
    return [(cache.keys, cache.values) for cache in x.state.caches]

  caches = tuple(
    dataclasses.replace(cache, keys=keys, values=values, start=start)
    for cache, (keys, values), start in zip(
      lanes.state.caches,
      mapped(heads, 5),
      mapped(lambda x: [cache.start for cache in x.state.caches]),
      strict=True,
    )
  )
  decoders = tuple(
    Decoder(None, layers, prefix)
    for layers, prefix in zip(
      mapped(lambda x: [one.layers for one in x.decoders], 4),
      mapped(lambda x: [one.prefix for one in x.decoders]),
      strict=True,
    )
  )
  rest = mapped(lambda x: dataclasses.replace(x.state, caches=()))
  state = dataclasses.replace(rest, caches=caches)
  return Lanes(decoders, state, mapped(lambda x: x.uniform))


def _padded(decoder: Decoder, size: int) -> Decoder:
  more = size - decoder.prefix.mask.shape[1]

  def pad(x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])

  mask = jnp.pad(decoder.prefix.mask, ((0, 0), (0, more)))
  prefix = dataclasses.replace(decoder.prefix, mask=mask)
  return Decoder(None, jax.tree.map(pad, decoder.layers), prefix)


def _weights(decoder: Decoder) -> tuple[PyTree, PyTree]:
  """Returns a decoder's parameters, and those of its layers."""
  layers = decoder.layers
  if isinstance(layers, decoding.Layers):
    return decoder.params, layers.params
  return decoder.params, tuple(layer.params for layer in layers)


def _without_weights(decoder: Decoder) -> Decoder:
  """Leaves out the parameters, and what only they need of the prompts."""
  none: Any = None
  prefix = dataclasses.replace(
    decoder.prefix, keys=none, values=none, last_hidden=none, last_query=none
  )
  own = none if isinstance(decoder.layers, decoding.Layers) else ()
  return Decoder(none, _layers(decoder.layers, own), prefix)


def _with_weights(weights: tuple[PyTree, PyTree], decoder: Decoder) -> Decoder:
  """Puts the parameters back."""
  params, own = weights
  return Decoder(params, _layers(decoder.layers, own), decoder.prefix)


def _layers(layers, params):
  """Replaces the parameters of layers, in a stack or apart."""
  if isinstance(layers, decoding.Layers):
    return dataclasses.replace(layers, params=params)
  return tuple(
    dataclasses.replace(layer, params=one)
    for layer, one in zip(layers, params or [None] * len(layers), strict=True)
  )
