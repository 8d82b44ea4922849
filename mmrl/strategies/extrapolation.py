"""Selective extrapolation: decodes with the parameters before and after RL.

The base model answers. A token that RL made less likely is resampled from the
distribution extrapolated from base beyond RL (`mmrl.strategies.direction`).

Reference: On the Direction of RLVR Updates for LLM Reasoning, arXiv 2603.22117,
and its published code (Hesse73/RLVR-Directions).
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.models import policy, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.rollouts import decode_loop, sampling
from mmrl.strategies import direction
from mmrl.strategies.ask import Answer, Ask, Steps
from mmrl.types import Prompt, PyTree, pytree, static

Start = Literal["base", "rl"]


@marked(asks=("policy_and_base",))
def extrapolation(
  example: Example,
  *,
  threshold: float = -0.3,
  g: float = 0.05,
  top_k: int | None = None,
  gate: direction.Gate = "logp",
  start: Start = "base",
) -> Steps:
  """Asks the models before and after RL, which decode their answer together.

  They are one model to ask, "policy_and_base" (`responders.local_pair`).

  Args:
    example: the question.
    threshold: see `selective_step`, as for the rest.
    g: 0 replaces tokens by the trained model's.
    top_k: published: 50.
    gate: which tokens are replaced.
    start: model of the first draws.

  Raises:
    UserError: see `check_options`.
  """
  options: dict[str, Any] = {
    "threshold": threshold,
    "g": g,
    "top_k": top_k,
    "gate": gate,
    "start": start,
  }
  check_options(**options)
  reply = yield Ask("policy_and_base", example.messages, options)
  return Answer(reply.text, reply.notes)


def check_options(
  *,
  threshold: float | Array,
  g: float | Array,
  top_k: int | None,
  gate: str,
  start: str,
) -> None:
  """Checks the options of `selective_step`; arrays are not checked.

  Raises:
    UserError: if there is no such gate or start, or a number is outside its
      range.
  """
  direction.one_of("gate", gate, direction.GATES)
  direction.one_of("start", start, get_args(Start))
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
  """Samples a token, and resamples it where the gate is open.

      y ~ pi_base;   where gate(y):  y ~ pi_ex

  The gate reads log-probabilities at temperature 1. Each draw divides by the
  temperature, then keeps the nucleus.

  Args:
    uniform: random numbers in [0, 1): two for the first draw, two for the
      second, one for gate "random".
    logp_rl: log-probabilities under the trained parameters, normalised.
    logp_base: under those before training.
    threshold: of the gate; below 0 for gate "logp".
    g: at least 0; see `direction.extrapolated_logits`. With 0 the second draw
      is from `pi_RL`.
    temperature: divides the logits; 0 is greedy.
    top_p: see `sampling.sample`.
    top_k: None extrapolates whole rows. A number k reads only the k most likely
      tokens of each model, as the published code does with 50. The second draw
      is then among those of base. A token outside RL's top k has the smallest
      log-probability in it, for extrapolation and gate.
    gate: see `direction.replacement_gate`.
    start: model of the first draw, "base" or "rl".

  Returns:
    (tokens, whether they are second draws); a second draw may be the same
    token. Where the two models have no token in common the first draw is kept.

  Raises:
    UserError: see `check_options`.

  Reference: arXiv 2603.22117, and its published code.
  Differs from the paper: with `top_k`, a first draw from outside base's top k
  isn't a candidate of the second draw; entropies and divergences are always of
  whole rows.
  """
  check_options(threshold=threshold, g=g, top_k=top_k, gate=gate, start=start)

  def draw(numbers, logits):
    logits = logits / (temperature or 1.0)
    return sampling.sample(numbers, logits, greedy=not temperature, top_p=top_p)

  # Both draws are computed for every row: a traced gate can't skip one.
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
  """Answers decoded by selective extrapolation from two models.

  Attributes:
    tokens: ids; the pad id after the end.
    mask: True on answer tokens, the closing end-of-sequence included.
    redrawn: which tokens are second draws.
    delta_logp: D of each token at temperature 1, 0 on padding.
  """

  tokens: Int[Array, "P G R"]
  mask: Bool[Array, "P G R"]
  redrawn: Bool[Array, "P G R"]
  delta_logp: Float[Array, "P G R"]


@pytree
class Selective:
  """How tokens are drawn from two models, the trained one first.

  Attributes:
    threshold, g, temperature, top_p, top_k, gate, start: see `selective_step`;
      the first two have no programs of their own.
  """

  threshold: float | Array = -0.3
  g: float | Array = 0.05
  temperature: float = static(1.0)
  top_p: float = static(1.0)
  top_k: int | None = static(None)
  gate: str = static("logp")
  start: str = static("base")

  def numbers(self, key: Array, answers: int, length: int) -> Array:
    """Returns random numbers, [G, R, 5]: the sampler's two, and three more."""
    first, again = (
      jax.random.uniform(key, (answers, length, count))
      for key, count in ((key, 2), (jax.random.fold_in(key, 1), 3))
    )
    return jnp.concatenate([first, again], axis=-1)

  def draw(
    self, config: ModelConfig, decoders: tuple[decode_loop.Decoder, ...]
  ) -> decode_loop.Draw:
    """Makes the function that draws a token.

    It returns whether that is a second draw, and D at temperature 1.
    """

    def draw(uniform, *hidden):
      rl, base = (
        jax.nn.log_softmax(policy.token_logits(decoder.params, config, x, 1.0))
        for decoder, x in zip(decoders, hidden, strict=True)
      )
      token, redrawn = selective_step(uniform, rl, base, **vars(self))
      return token, (redrawn, direction.difference(rl[token], base[token]))

    return draw


def extrapolate(
  params_rl: PyTree,
  params_base: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  key: Array,
  *,
  answers: int,
  length: int,
  **options,
) -> Extrapolated:
  """Decodes answers by `selective_step`, with both models in one loop.

  Both models encode the pictures with their own towers and decode every token:
  twice the compute and twice the caches of one model. The first draws use the
  random numbers of `sampler.generate`, so with equal parameters the answers
  are the same.

  Args:
    params_rl: parameters trained by RL.
    params_base: parameters before it.
    config: the architecture of both.
    prompt: the prompts.
    key: PRNG key, or one per prompt.
    answers: G.
    length: R, the most tokens of an answer, its end included.
    **options: see `Selective`; published results have a threshold of -0.3, g of
      0.05 and top_p of 0.7.

  Raises:
    UserError: see `check_options`.
  """

  def prefilled(params: PyTree) -> decode_loop.Decoder:
    visual = tower.vision(params, config, prompt.patches)
    prefix = vlm.prefill(params, config, prompt, visual)
    return decode_loop.make_decoder(params, config, prefix)

  # RL first: `draw` gets the hidden states in the order of the decoders.
  both = prefilled(params_rl), prefilled(params_base)
  keys = decode_loop.prompt_keys(key, len(prompt.mask))
  way = Selective(**options)
  uniform = jax.vmap(lambda key: way.numbers(key, answers, length))(keys)
  tokens, mask, records = decode_loop.decode_answers(
    way.draw(config, both), config, both, uniform
  )
  return Extrapolated(tokens, mask, *records)
