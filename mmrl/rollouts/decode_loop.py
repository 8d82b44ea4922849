"""Decoding loop: samples G answers per prompt in one compiled program.

The caller defines how a token is drawn, and from how many models. A model's
keys and values of a prompt are stored once. As answers end, a half, a quarter
and an eighth of the batch are decoded, on each shard of a mesh by itself, and
the loop ends with the last answer: the cost of a batch depends on the length of
its answers, not on the longest allowed.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import sharding
from mmrl.models import decoding, vlm
from mmrl.models.config import Latent, ModelConfig
from mmrl.models.kernels.working import Working, by_shard, choose, put, take
from mmrl.models.passes import latent as latent_lib
from mmrl.models.passes import segments
from mmrl.types import Prefix, PyTree, pytree

# Most logits in memory at once on a device in a draw; 256 MiB per model.
_DRAWN_VALUES = 2**26
# Initial capacity of the caches in tokens; it doubles when they are full.
_FIRST_ROOM = 128
# Up to this answer length the divisors below aren't worth compiling.
_ONE_WIDTH = 128
# As answers end, a shard's answers / divisor are decoded, of whatever prompts.
_DIVISORS = (1, 2, 4, 8)

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
    caches: each model's keys and values of all drawn tokens but the newest.
    latent: where answers are in latent segments; None for models without.
    working: which answers are decoded, if not all; caches are theirs.
  """

  step: Int[Array, ""]
  tokens: Int[Array, "P G R"]
  records: PyTree
  done: Bool[Array, "P G"]
  caches: tuple[decoding.Cache, ...]
  latent: "Latents | None" = None
  working: Working | None = None


@pytree
class Latents:
  """Progress of latent segments.

  Attributes:
    left: positions of the open segment that are still to come; 0 outside.
    opened: number of segments so far.
    states: each model's input, if the next position is an inner one.
  """

  left: Int[Array, "P G"]
  opened: Int[Array, "P G"]
  states: tuple[Float[Array, "P G D"], ...]


def _force(
  latent: Latent, now: Latents, token: Array, records: PyTree
) -> tuple[Latents, Array, PyTree]:
  """Replaces what was drawn inside of segments by what they are made of."""
  inside = now.left > 0
  forced = jnp.where(now.left > 1, latent.token_id, latent.end_token_id)
  token = jnp.where(inside, forced, token)
  records = jax.tree.map(
    lambda x: jnp.where(inside, jnp.zeros_like(x), x), records
  )
  opens = ~inside & (token == latent.token_id)
  opens &= now.opened < latent.segments
  left = jnp.where(inside, now.left - 1, (latent.length - 1) * opens)
  return (
    dataclasses.replace(now, left=left, opened=now.opened + opens),
    token,
    records,
  )


def rooms(length: int) -> list[int]:
  """Returns the cache capacities, doubled until they hold `length` tokens.

  Attention reads all of a cache, so the cost depends on the length of the
  answers, not on the longest allowed.
  """
  found = [min(length, _FIRST_ROOM)]
  while found[-1] < length:
    found.append(min(length, 2 * found[-1]))
  return found


def narrows(length: int) -> bool:
  """Tells whether answers may be so long that waiting for the longest costs."""
  return length > _ONE_WIDTH


def widths(answers: int, length: int) -> list[int]:
  """Returns the numbers of a shard's answers to decode, fewer as they end."""
  divisors = _DIVISORS if narrows(length) else (1,)
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
  values = _DRAWN_VALUES * sharding.prompt_axes(len(arrays[0]))[1]
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

  latents = None
  if config.latent:
    none = jnp.zeros((prompts, answers), jnp.int32)
    states = (
      jnp.zeros((prompts, answers, x.shape[-1]), x.dtype) for x in hidden
    )
    latents = Latents(none, none, tuple(states))
    latents, token, records = _force(config.latent, latents, token, records)

  def first(new, rest=0):
    empty = jnp.full((prompts, answers, length), rest, new.dtype)
    return empty.at[:, :, 0].set(new)

  return State(
    step=jnp.ones((), jnp.int32),
    tokens=first(token, config.pad_token_id),
    records=jax.tree.map(first, records),
    done=config.ends(token),
    caches=tuple(
      decoding.empty_cache(decoder.layers, answers, rooms(length)[0])
      for decoder in decoders
    ),
    latent=latents,
  )


def _decode(
  config: ModelConfig,
  decoder: Decoder,
  cache: decoding.Cache,
  token: Int[Array, "n W"],
  fed: tuple[Array, Array] | None,
  working: Working | None,
) -> tuple[Array, decoding.Cache, Array | None]:
  """Decodes the newest token, or the state that is fed back in its place.

  Args:
    config, decoder, cache, token, working: see `decoding.decode`.
    fed: (where a state is the input, the states); None without segments.

  Returns:
    The hidden state that emits the next token, the cache, and the state as it
    is fed back.
  """
  where = decoder.params, config, decoder.prefix, decoder.layers, cache
  if fed is None:
    return *decoding.decode(*where, token, working), None
  inner, states = fed
  inputs = vlm.embed(decoder.params, config, token)
  inputs = jnp.where(inner[..., None], states.astype(inputs.dtype), inputs)
  x, cache = decoding.decode_inputs(*where, inputs, token, working)
  hidden = vlm.final_norm(decoder.params, config, x)
  return hidden, cache, latent_lib.feedback(decoder.params, config, x)


def advance(
  draw: Draw,
  config: ModelConfig,
  decoders: tuple[Decoder, ...],
  uniform: Float[Array, "P G R N"],
  state: State,
) -> State:
  """Decodes the newest tokens and draws the next ones.

  Columns of tokens and random numbers are a ring: step R is in the first.

  See `decode_answers` for the arguments.
  """
  length, working = state.tokens.shape[2], state.working
  at = state.step % length
  newest = take(state.tokens[:, :, at - 1], working)
  latent, latents = config.latent, state.latent
  fed: tuple[Any, ...] = (None,) * len(decoders)
  if latent and latents is not None:
    latents = jax.tree.map(lambda x: take(x, working), latents)
    # An inner position is followed by the end at least.
    inner = (latents.left > 0) & (latents.left < latent.length - 1)
    fed = tuple((inner, states) for states in latents.states)
  hidden, caches, states = zip(
    *(
      _decode(config, decoder, cache, newest, one, working)
      for decoder, cache, one in zip(decoders, state.caches, fed, strict=True)
    ),
    strict=True,
  )
  now = take(uniform[:, :, at], working)
  token, records = _draw_answers(draw, config, now, *hidden)
  if latent and latents is not None:
    latents = dataclasses.replace(latents, states=states)
    latents, token, records = _force(latent, latents, token, records)
    latents = jax.tree.map(
      lambda x, new: put(x, working, new), state.latent, latents
    )

  def write(x, new):
    return x.at[:, :, at].set(put(x[:, :, at], working, new))

  ended = config.ends(token)
  ended |= take(state.done, working)
  return dataclasses.replace(
    state,
    step=state.step + 1,
    tokens=write(state.tokens, token),
    records=jax.tree.map(write, state.records, records),
    done=put(state.done, working, ended),
    caches=caches,
    latent=latents,
  )


def _narrow(state: State, width: int, run: Callable[[State], State]) -> State:
  """Runs the loop on `width` answers of a shard, unfinished ones included."""
  working = choose(state.done, width)
  parts = tuple(decoding.take_answers(x, working) for x in state.caches)
  after = run(dataclasses.replace(state, working=working, caches=parts))
  caches = tuple(
    decoding.put_answers(cache, working, part)
    for cache, part in zip(state.caches, after.caches, strict=True)
  )
  return dataclasses.replace(after, working=None, caches=caches)


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
    The mask is False, too, on what isn't drawn in latent segments.
  """
  length = uniform.shape[2]
  next_token = functools.partial(advance, draw, config, decoders, uniform)

  def run(room: int, few: int, state: State) -> State:
    """Decodes until no shard has more than `few` unfinished answers."""

    def going(state: State):
      unfinished = by_shard(~state.done).sum(1).max()
      return (state.step < room) & (unfinished > few)

    return jax.lax.while_loop(going, next_token, state)

  state = begin(draw, config, decoders, uniform)
  # Shapes are static, so each pair of capacity and width is a loop of its own.
  _, *narrower = widths(by_shard(state.done).shape[1], length)
  for room in rooms(length):
    caches = tuple(decoding.lengthen(x, room) for x in state.caches)
    state = dataclasses.replace(state, caches=caches)
    few, *fewer = *narrower, 0
    state = run(room, few, state)
    for width, few in zip(narrower, fewer, strict=True):
      state = _narrow(state, width, functools.partial(run, room, few))
  return finished(config, state.tokens, state.records)


def finished(
  config: ModelConfig, tokens: Int[Array, "P G R"], records: PyTree
) -> tuple[Int[Array, "P G R"], Bool[Array, "P G R"], PyTree]:
  """Cuts what was drawn at the answers' ends; see `decode_answers`."""
  ends = config.ends(tokens)
  mask = jnp.cumsum(ends, axis=-1) - ends == 0
  records = jax.tree.map(
    lambda x: jnp.where(mask, x, jnp.zeros_like(x)), records
  )
  tokens = jnp.where(mask, tokens, config.pad_token_id)
  if config.latent:
    mask &= segments.chosen(tokens, config.latent)
  return tokens, mask, records
