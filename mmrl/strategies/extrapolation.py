"""Answers from two sets of parameters, trained by RL and those before it.

The base model answers; a token that RL dislikes is drawn again, from a
distribution a step further on the way from base to RL
(`mmrl.strategies.direction`).

Reference: On the Direction of RLVR Updates for LLM Reasoning, arXiv 2603.22117,
and its published code (Hesse73/RLVR-Directions).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError
from mmrl.models import decoding, policy, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.rollouts import sampler, sampling
from mmrl.strategies import direction
from mmrl.types import Prompt, PyTree, pytree

_STARTS = ("base", "rl")


def check_options(
  *,
  threshold: float | Array,
  g: float | Array,
  top_k: int | None,
  gate: str,
  start: str,
) -> None:
  """Refuses options of `selective_step`; arrays aren't looked at.

  Raises:
    UserError: if there is no such gate or start, or a number is outside its
      range.
  """
  direction.one_of("gate", gate, direction.GATES)
  direction.one_of("start", start, _STARTS)
  if gate == "logp" and not _is_array(threshold) and not threshold < 0:
    raise UserError(
      f"threshold of gate 'logp' must be below 0, got {threshold}: equal"
      " models would open it"
    )
  if not _is_array(g) and not g >= 0:
    raise UserError(f"g must be at least 0, got {g}")
  if top_k is not None and top_k < 1:
    raise UserError(f"top_k must be None or at least 1, got {top_k}")


def _is_array(number: float | Array) -> bool:
  return isinstance(number, jax.Array)


def selective_step(
  uniform: Float[Array, "*batch 5"],
  logp_rl: Float[Array, "*batch V"],
  logp_base: Float[Array, "*batch V"],
  *,
  threshold: float | Array,
  g: float | Array,
  temperature: float = 1.0,
  top_p: float = 1.0,
  top_k: int | None = None,
  gate: str = "logp",
  start: str = "base",
) -> tuple[Int[Array, "*batch"], Bool[Array, "*batch"]]:
  """Draws a token, and again where the gate is open.

      y ~ pi_base;   where gate(y):  y ~ pi_ex

  The gate sees the plain log-probabilities. Each draw divides by the
  temperature, then keeps the nucleus.

  Args:
    uniform: random numbers in [0, 1): two for the first draw, two for the
      second, one for gate "random".
    logp_rl: log-probabilities under the trained parameters, normalised.
    logp_base: under those before training.
    threshold: of the gate; with logp, below 0.
    g: at least 0; see `direction.extrapolated_logits`. 0 replaces by a token
      of `pi_RL`.
    temperature: divides the logits; 0 is greedy.
    top_p: see `sampling.sample`.
    top_k: None mixes whole rows. A number k reads the k most likely tokens of
      each model only, as the published code does with 50: the second draw is
      among those of base, and what isn't in the list of RL has the smallest
      log-probability in it, for mix and gate.
    gate: see `direction.replacement_gate`.
    start: whose token is drawn first, "base" or "rl".

  Returns:
    (tokens, whether they are second draws); a second draw may be the same
    token. Where the two models have no token in common the first draw stands.

  Raises:
    UserError: see `check_options`.

  Reference: arXiv 2603.22117, and its published code.
  Differs from the paper: with `top_k` a base token that was drawn from outside
  its list isn't a candidate of the second draw; entropies and divergences are
  of whole rows in any case.
  """
  check_options(threshold=threshold, g=g, top_k=top_k, gate=gate, start=start)

  def draw(numbers, logits):
    return sampling.sample(
      numbers,
      logits / (temperature or 1.0),
      greedy=not temperature,
      top_p=top_p,
    )

  first = draw(uniform[..., :2], logp_base if start == "base" else logp_rl)
  rl, candidates = logp_rl, logp_base
  if top_k is not None:
    count = min(top_k, logp_rl.shape[-1])
    least = jax.lax.top_k(logp_rl, count)[0][..., -1:]
    rl = jnp.maximum(logp_rl, least)
    candidates = sampling.keep_top_k(logp_base, count)
  mixed = direction.extrapolated_logits(rl, candidates, g)
  seen = rl if gate == "logp" else logp_rl
  redrawn = direction.replacement_gate(
    gate, seen, logp_base, first, threshold, uniform[..., 4]
  )
  redrawn &= jnp.isfinite(mixed).any(-1)
  return jnp.where(redrawn, draw(uniform[..., 2:4], mixed), first), redrawn


@pytree
class Extrapolated:
  """Answers of two models.

  Attributes:
    tokens: ids; the pad id after the end.
    mask: True on answer tokens, the closing end-of-sequence included.
    redrawn: which of them are second draws.
    delta_logp: D of each, 0 on padding; whatever the temperature.
  """

  tokens: Int[Array, "P G R"]
  mask: Bool[Array, "P G R"]
  redrawn: Bool[Array, "P G R"]
  delta_logp: Float[Array, "P G R"]


@pytree
class _State:
  """Carry of the decoding loop.

  Attributes:
    step: tokens drawn so far.
    tokens, redrawn, delta_logp: of the answers.
    done: whether the answer has drawn its end of sequence.
    caches: keys and values of both models, of all tokens but the newest.
  """

  step: Int[Array, ""]
  tokens: Int[Array, "P G R"]
  redrawn: Bool[Array, "P G R"]
  delta_logp: Float[Array, "P G R"]
  done: Bool[Array, "P G"]
  caches: tuple[decoding.Cache, ...]


def extrapolate(
  params_rl: PyTree,
  params_base: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  key: Array,
  *,
  answers: int,
  length: int,
  threshold: float | Array = -0.3,
  g: float | Array = 0.05,
  temperature: float = 1.0,
  top_p: float = 1.0,
  top_k: int | None = None,
  gate: str = "logp",
  start: str = "base",
) -> Extrapolated:
  """Decodes answers by `selective_step`, in one loop.

  Both models see the same pictures, each by its own tower, and decode every
  token: twice the work and twice the caches of one. The first draws have the
  random numbers of `sampler.generate`, so that with equal parameters the
  answers are its answers. Those that have ended are decoded on until the last
  has.

  Args:
    params_rl: parameters trained by RL.
    params_base: parameters before it.
    config: the architecture of both.
    prompt: the prompts.
    key: PRNG key, or one of each prompt.
    answers: G.
    length: R, the most tokens of an answer, its end included.
    threshold: see `selective_step`; published with g = 0.05.
    g: see `selective_step`.
    temperature: see `selective_step`.
    top_p: see `selective_step`; published results have 0.7.
    top_k: see `selective_step`.
    gate: see `selective_step`.
    start: see `selective_step`.

  Raises:
    UserError: see `check_options`.

  Reference: arXiv 2603.22117.
  """
  prompts = prompt.mask.shape[0]
  shape = (prompts, answers, length)

  def begin(params: PyTree):
    visual = tower.vision(params, config, prompt.patches)
    prefix = vlm.prefill(params, config, prompt, visual)
    params = decoding.cast(params, config)
    return params, prefix, decoding.take_apart(params, prefix)

  both = begin(params_rl), begin(params_base)

  def numbers(key):
    again = jax.random.fold_in(key, 1)
    return jnp.concatenate(
      [
        jax.random.uniform(key, (*shape[1:], 2)),
        jax.random.uniform(again, (*shape[1:], 3)),
      ],
      axis=-1,
    )

  keys = key if key.ndim else jax.random.split(key, prompts)
  uniform = jax.vmap(numbers)(keys)

  def draw_one(uniform, *hidden):
    rl, base = (
      jax.nn.log_softmax(policy.token_logits(params, config, x, 1.0))
      for (params, *_), x in zip(both, hidden, strict=True)
    )
    token, redrawn = selective_step(
      uniform,
      rl,
      base,
      threshold=threshold,
      g=g,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      gate=gate,
      start=start,
    )
    return token, redrawn, direction.difference(rl[token], base[token])

  def draw(state: _State, hidden) -> _State:
    at = state.step
    token, redrawn, change = sampler.draw_answers(
      draw_one, config, uniform[:, :, at], *hidden
    )
    return dataclasses.replace(
      state,
      step=at + 1,
      tokens=state.tokens.at[:, :, at].set(token),
      redrawn=state.redrawn.at[:, :, at].set(redrawn),
      delta_logp=state.delta_logp.at[:, :, at].set(change),
      done=state.done | (token == config.eos_token_id),
    )

  def advance(state: _State) -> _State:
    newest = state.tokens[:, :, state.step - 1]
    hidden, caches = zip(
      *(
        decoding.decode(params, config, prefix, decoder, cache, newest)
        for (params, prefix, decoder), cache in zip(
          both, state.caches, strict=True
        )
      ),
      strict=True,
    )
    return draw(dataclasses.replace(state, caches=caches), hidden)

  def going(state: _State):
    return (state.step < length) & ~state.done.all()

  state = _State(
    step=jnp.zeros((), jnp.int32),
    tokens=jnp.full(shape, config.pad_token_id, jnp.int32),
    redrawn=jnp.zeros(shape, bool),
    delta_logp=jnp.zeros(shape, jnp.float32),
    done=jnp.zeros(shape[:2], bool),
    caches=tuple(
      decoding.empty_cache(decoder, answers, length) for *_, decoder in both
    ),
  )
  # The prefixes emit the first token of every answer.
  first = [
    jnp.broadcast_to(
      prefix.last_hidden[:, None], (*shape[:2], prefix.last_hidden.shape[-1])
    )
    for _, prefix, _ in both
  ]
  state = jax.lax.while_loop(going, advance, draw(state, first))
  mask = sampler.answer_mask(config, state.tokens, state.step)
  return Extrapolated(
    tokens=jnp.where(mask, state.tokens, config.pad_token_id),
    mask=mask,
    redrawn=state.redrawn & mask,
    delta_logp=jnp.where(mask, state.delta_logp, 0.0),
  )
