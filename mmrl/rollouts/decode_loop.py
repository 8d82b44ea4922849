"""Decoding loop: samples G answers per prompt in one compiled program.

The caller defines how a token is drawn, and from how many models. A model's
keys and values of a prompt are stored once. Answers that have ended are not
decoded further, and the loop ends with the last answer, so the cost of a batch
depends on the length of its answers, not on the longest allowed.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import sharding
from mmrl.models import decoding
from mmrl.models.config import ModelConfig
from mmrl.types import Prefix, PyTree, pytree

# Most logits in memory at once on a device in a draw; 256 MiB per model.
_DRAWN_VALUES = 2**26
# Initial capacity of the caches in tokens; it doubles when they are full.
_FIRST_ROOM = 128
# Up to this answer length the divisors below aren't worth compiling.
_ONE_WIDTH = 128
# As answers end, G / divisor answers of each prompt are decoded.
_DIVISORS = (1, 2, 4)

# For one answer: (random numbers, [D] of each model) -> (token, records).
Draw = Callable[..., tuple[Array, PyTree]]


@pytree
class Decoder:
  """A model's decoder and the prompts it answers.

  Attributes:
    params: parameters, cast to the compute type.
    layers: from `decoding.take_apart`.
    prefix: from `vlm.prefill`.
  """

  params: PyTree
  layers: tuple[decoding.Layers, ...] | decoding.Layers
  prefix: Prefix


@pytree
class State:
  """Carry of the decoding loop.

  Attributes:
    step: tokens drawn so far, the same for every unfinished answer.
    tokens: drawn ids; arbitrary after an answer's end.
    records: values that `draw` returns with each token.
    done: whether the answer has drawn an end of sequence.
    working: indices of the answers that are decoded, W of each prompt.
    caches: each model's keys and values of all drawn tokens but the newest.
  """

  step: Int[Array, ""]
  tokens: Int[Array, "P G R"]
  records: PyTree
  done: Bool[Array, "P G"]
  working: Int[Array, "P W"]
  caches: tuple[decoding.Cache, ...]


def rooms(length: int) -> list[int]:
  """Returns the cache capacities, doubled until they hold `length` tokens.

  Attention reads all of a cache, so the cost depends on the length of the
  answers, not on the longest allowed.
  """
  found = [min(length, _FIRST_ROOM)]
  while found[-1] < length:
    found.append(min(length, 2 * found[-1]))
  return found


def widths(answers: int, length: int) -> list[int]:
  """Returns the numbers of answers per prompt to decode, fewer as they end."""
  divisors = _DIVISORS if length > _ONE_WIDTH else (1,)
  return sorted({-(-answers // n) for n in divisors}, reverse=True)


def prompt_keys(key: Array, prompts: int) -> Array:
  """Splits a PRNG key into one per prompt; returns per-prompt keys as is."""
  return key if key.ndim else jax.random.split(key, prompts)


def make_decoder(
  params: PyTree, config: ModelConfig, prefix: Prefix
) -> Decoder:
  """Makes the decoder of a model whose prompts are prefilled in `prefix`."""
  params = decoding.cast(params, config)
  layers = decoding.take_apart(params, prefix, config.sparse)
  return Decoder(params, layers, prefix)


def _draw_answers(draw: Draw, config: ModelConfig, *arrays: Array):
  """Calls `draw` for every answer, in batches whose logits fit in memory.

  Batches are along the answers of a prompt: prompts stay on their devices.

  Args:
    draw: draws a token of one answer.
    config: for the size of the vocabulary.
    arrays: [P, W, ...]; `draw` receives one entry of each.
  """
  rows = len(arrays[0]) * config.text.vocab_size
  values = _DRAWN_VALUES * sharding.prompt_axes()[1]
  found = jax.lax.map(
    lambda one: jax.vmap(draw)(*one),
    [x.swapaxes(0, 1) for x in arrays],
    batch_size=max(1, values // rows),
  )
  return jax.tree.map(lambda x: x.swapaxes(0, 1), found)


def begin(
  draw: Draw,
  config: ModelConfig,
  decoders: tuple[Decoder, ...],
  uniform: Float[Array, "P G R N"],
) -> State:
  """Draws the first tokens from the prefixes' last hidden states.

  See `decode_answers` for the arguments.
  """
  prompts, answers, length, _ = uniform.shape
  hidden = [decoder.prefix.last_hidden[:, None] for decoder in decoders]
  token, records = _draw_answers(
    draw,
    config,
    uniform[:, :, 0],
    *(jnp.broadcast_to(x, (prompts, answers, x.shape[-1])) for x in hidden),
  )

  def first(new, rest=0):
    empty = jnp.full((prompts, answers, length), rest, new.dtype)
    return empty.at[:, :, 0].set(new)

  return State(
    step=jnp.ones((), jnp.int32),
    tokens=first(token, config.pad_token_id),
    records=jax.tree.map(first, records),
    done=config.ends(token),
    working=jnp.broadcast_to(jnp.arange(answers), (prompts, answers)),
    caches=tuple(
      decoding.empty_cache(decoder.layers, answers, rooms(length)[0])
      for decoder in decoders
    ),
  )


def advance(
  draw: Draw,
  config: ModelConfig,
  decoders: tuple[Decoder, ...],
  uniform: Float[Array, "P G R N"],
  state: State,
) -> State:
  """Decodes the newest tokens and draws the next ones.

  See `decode_answers` for the arguments.
  """
  at, working = state.step, state.working
  newest = decoding.take(state.tokens[:, :, at - 1], working)
  hidden, caches = zip(
    *(
      decoding.decode(
        decoder.params, config, decoder.prefix, decoder.layers, cache, newest
      )
      for decoder, cache in zip(decoders, state.caches, strict=True)
    ),
    strict=True,
  )
  now = decoding.take(uniform[:, :, at], working)
  token, records = _draw_answers(draw, config, now, *hidden)

  def put(x, new):
    return x.at[:, :, at].set(decoding.put(x[:, :, at], working, new))

  ended = config.ends(token)
  ended |= decoding.take(state.done, working)
  return dataclasses.replace(
    state,
    step=at + 1,
    tokens=put(state.tokens, token),
    records=jax.tree.map(put, state.records, records),
    done=decoding.put(state.done, working, ended),
    caches=caches,
  )


def _narrow(state: State, width: int, run: Callable[[State], State]) -> State:
  """Runs the loop on `width` answers per prompt, unfinished ones included."""
  working = jnp.argsort(state.done, axis=1, stable=True)[:, :width]
  parts = tuple(decoding.take_answers(x, working) for x in state.caches)
  after = run(dataclasses.replace(state, working=working, caches=parts))
  caches = tuple(
    decoding.put_answers(cache, working, part)
    for cache, part in zip(state.caches, after.caches, strict=True)
  )
  return dataclasses.replace(after, working=state.working, caches=caches)


def decode_answers(
  draw: Draw,
  config: ModelConfig,
  decoders: tuple[Decoder, ...],
  uniform: Float[Array, "P G R N"],
) -> tuple[Int[Array, "P G R"], Bool[Array, "P G R"], PyTree]:
  """Decodes G answers of at most R tokens from each prompt.

  Args:
    draw: a function of one answer. It maps N random numbers and the hidden
      state of each model to a token and a tree of numbers, its records.
    config: the architecture of all models.
    decoders: one for each model that `draw` reads; all decode every token.
    uniform: random numbers in [0, 1).

  Returns:
    (tokens, mask, records): the pad id, False and zeros after an answer's end.
  """
  _, answers, length, _ = uniform.shape
  next_token = functools.partial(advance, draw, config, decoders, uniform)

  def run(room: int, few: int, state: State) -> State:
    """Decodes until no prompt has more than `few` unfinished answers."""

    def going(state: State):
      return (state.step < room) & ((~state.done).sum(1).max() > few)

    return jax.lax.while_loop(going, next_token, state)

  state = begin(draw, config, decoders, uniform)
  # Shapes are static, so each pair of capacity and width is a loop of its own.
  _, *narrower = widths(answers, length)
  for room in rooms(length):
    caches = tuple(decoding.lengthen(x, room) for x in state.caches)
    state = dataclasses.replace(state, caches=caches)
    few, *fewer = *narrower, 0
    state = run(room, few, state)
    for width, few in zip(narrower, fewer, strict=True):
      state = _narrow(state, width, functools.partial(run, room, few))
  ends = config.ends(state.tokens)
  mask = jnp.cumsum(ends, axis=-1) - ends == 0
  mask &= jnp.arange(length)[None, None] < state.step
  records = jax.tree.map(
    lambda x: jnp.where(mask, x, jnp.zeros_like(x)), state.records
  )
  return jnp.where(mask, state.tokens, config.pad_token_id), mask, records
