"""G answers per prompt in one compiled loop.

The prompt's keys and values are stored once per prompt. Answers that have ended
are not decoded on, and the loop ends with the last of them: a batch costs
about what its answers are long, not what the longest may be.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.machines import sharding
from mmrl.models import decoding, policy, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.rollouts import sampling
from mmrl.types import Prefix, Prompt, PyTree, Rollout, pytree

# Logits that exist at once in a draw on a device; 256 MiB.
_DRAWN_VALUES = 2**26
# Tokens that the caches have room for at first; they double when full.
_FIRST_ROOM = 128
# Longest answers for which the widths below aren't worth compiling.
_ONE_WIDTH = 128
# What the answers of a prompt are divided by as they end.
_DIVISORS = (1, 2, 4)


@pytree
class State:
  """Carry of the decoding loop.

  Attributes:
    step: tokens drawn so far, the same for every answer that goes on.
    tokens: drawn ids; what stands behind an answer's end means nothing.
    logprobs: their log-probabilities.
    done: whether the answer has drawn its end of sequence.
    working: which answers are decoded, W of each prompt.
    cache: their keys and values of all drawn tokens but the newest.
  """

  step: Int[Array, ""]
  tokens: Int[Array, "P G R"]
  logprobs: Float[Array, "P G R"]
  done: Bool[Array, "P G"]
  working: Int[Array, "P W"]
  cache: decoding.Cache


def rooms(length: int) -> list[int]:
  """How long the caches get: doubled until they hold `length` tokens.

  Attention reads all of a cache, so an answer pays for the room of its own
  length, not for that of the longest allowed.
  """
  found = [min(length, _FIRST_ROOM)]
  while found[-1] < length:
    found.append(min(length, 2 * found[-1]))
  return found


def widths(answers: int, length: int) -> list[int]:
  """How many answers of a prompt are decoded: fewer as they end."""
  divisors = _DIVISORS if length > _ONE_WIDTH else (1,)
  return sorted({-(-answers // n) for n in divisors}, reverse=True)


def draw_answers(draw_one: Callable, config: ModelConfig, *arrays: Array):
  """`draw_one` for every answer, as many of each prompt at once as there is
  room for their logits. Prompts stay on their devices.

  Args:
    draw_one: of one answer.
    config: for the vocabulary.
    arrays: [P, W, ...], of which it is given one entry each.
  """
  rows = len(arrays[0]) * config.text.vocab_size
  values = _DRAWN_VALUES * sharding.prompt_axes()[1]
  found = jax.lax.map(
    lambda one: jax.vmap(draw_one)(*one),
    [x.swapaxes(0, 1) for x in arrays],
    batch_size=max(1, values // rows),
  )
  return jax.tree.map(lambda x: x.swapaxes(0, 1), found)


def answer_mask(
  config: ModelConfig, tokens: Int[Array, "P G R"], steps: Int[Array, ""]
) -> Bool[Array, "P G R"]:
  """True on the tokens up to each answer's end, of the first `steps`."""
  ends = tokens == config.eos_token_id
  return (jnp.cumsum(ends, axis=-1) - ends == 0) & (
    jnp.arange(tokens.shape[-1])[None, None] < steps
  )


def _narrow(state: State, width: int, run: Callable[[State], State]) -> State:
  """Runs on `width` answers of each prompt, those that go on among them."""
  working = jnp.argsort(state.done, axis=1, stable=True)[:, :width]
  part = decoding.take_answers(state.cache, working)
  after = run(dataclasses.replace(state, working=working, cache=part))
  cache = decoding.put_answers(state.cache, working, after.cache)
  return dataclasses.replace(after, working=state.working, cache=cache)


def generate(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  key: Array,
  *,
  answers: int,
  length: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[Array, Array, Array]:
  """Decodes answers from a prefix.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `vlm.prefill`.
    key: PRNG key, or one of each prompt.
    answers: G.
    length: R, the most tokens of an answer, its end included.
    temperature: divides the logits; 0 is greedy.
    top_k: see `sampling.sample`.
    top_p: see `sampling.sample`.

  Returns:
    (tokens, mask, logprobs), each [P, G, R]. The log-probabilities are those
    of the unfiltered policy at this temperature, as training scores them.
  """
  greedy = temperature == 0
  prompts = prefix.mask.shape[0]
  params = decoding.cast(params, config)
  decoder = decoding.take_apart(params, prefix)
  shape = (prompts, answers, length)
  # All of them ahead: two numbers per token cost nothing.
  keys = key if key.ndim else jax.random.split(key, prompts)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (*shape[1:], 2)))(keys)

  def draw_one(uniform, hidden):
    logits = policy.token_logits(
      params, config, hidden, 1.0 if greedy else temperature
    )
    token = sampling.sample(
      uniform, logits, greedy=greedy, top_k=top_k, top_p=top_p
    )
    return token, logits[token] - jax.nn.logsumexp(logits)

  def draw(state: State, hidden) -> State:
    at = state.step
    now = decoding.take(uniform[:, :, at], state.working)
    token, logprob = draw_answers(draw_one, config, now, hidden)

    def put(x, new):
      return x.at[:, :, at].set(decoding.put(x[:, :, at], state.working, new))

    ended = token == config.eos_token_id
    ended |= decoding.take(state.done, state.working)
    return dataclasses.replace(
      state,
      step=at + 1,
      tokens=put(state.tokens, token),
      logprobs=put(state.logprobs, logprob),
      done=decoding.put(state.done, state.working, ended),
    )

  def advance(state: State) -> State:
    newest = decoding.take(state.tokens[:, :, state.step - 1], state.working)
    hidden, cache = decoding.decode(
      params, config, prefix, decoder, state.cache, newest
    )
    return draw(dataclasses.replace(state, cache=cache), hidden)

  first_room, *larger = rooms(length)
  state = State(
    step=jnp.zeros((), jnp.int32),
    tokens=jnp.full(shape, config.pad_token_id, jnp.int32),
    logprobs=jnp.zeros(shape, jnp.float32),
    done=jnp.zeros(shape[:2], bool),
    working=jnp.broadcast_to(jnp.arange(answers), shape[:2]),
    cache=decoding.empty_cache(decoder, answers, first_room),
  )
  # The prefix emits the first token of every answer: no decoding needed.
  first = jnp.broadcast_to(
    prefix.last_hidden[:, None], (*shape[:2], prefix.last_hidden.shape[-1])
  )
  state = draw(state, first)
  _, *narrower = widths(answers, length)
  for room in (first_room, *larger):

    def run(state: State, few: int, room=room) -> State:
      """Decodes until at most `few` answers of any prompt go on."""

      def going(state: State):
        return (state.step < room) & ((~state.done).sum(1).max() > few)

      return jax.lax.while_loop(going, advance, state)

    cache = decoding.lengthen(state.cache, room)
    state = dataclasses.replace(state, cache=cache)
    few, *fewer = *narrower, 0
    state = run(state, few)
    for width, few in zip(narrower, fewer, strict=True):
      state = _narrow(state, width, functools.partial(run, few=few))
  mask = answer_mask(config, state.tokens, state.step)
  tokens = jnp.where(mask, state.tokens, config.pad_token_id)
  return tokens, mask, jnp.where(mask, state.logprobs, 0.0)


def rollout(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  key: Array,
  *,
  attention_layers: tuple[int, ...] = (),
  **options,
) -> Rollout:
  """Pictures, prompts and answers of one batch.

  Args:
    params: model parameters, the live training weights.
    config: the architecture.
    prompt: the prompts.
    key: PRNG key, or one of each prompt.
    attention_layers: see `vlm.prefill`.
    **options: see `generate`.
  """
  visual = tower.vision(params, config, prompt.patches)
  prefix = vlm.prefill(
    params, config, prompt, visual, attention_layers=attention_layers
  )
  tokens, mask, logprobs = generate(params, config, prefix, key, **options)
  return Rollout(
    tokens=tokens, mask=mask, logprobs=logprobs, visual=visual, prefix=prefix
  )
