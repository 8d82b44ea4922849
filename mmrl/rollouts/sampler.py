"""Sampler: draws G answers per prompt from one model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mmrl.machines import groups
from mmrl.models import policy, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.rollouts import decode_loop, sampling
from mmrl.types import Batch, Prefix, Prompt, PyTree, pytree, static


@pytree
class Sampling:
  """How tokens are drawn from one model.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_k: see `sampling.sample`.
    top_p: see `sampling.sample`.
  """

  temperature: float = static(1.0)
  top_k: int = static(0)
  top_p: float = static(1.0)

  def numbers(self, key: Array, answers: int, length: int) -> Array:
    """Returns the random numbers of a prompt's answers, [G, R, 2]."""
    return jax.random.uniform(key, (answers, length, 2))

  def draw(
    self, config: ModelConfig, decoders: tuple[decode_loop.Decoder, ...]
  ) -> decode_loop.Draw:
    """Makes the function that draws a token, and returns its log-probability.

    A third random number that isn't negative is the id that stands in place of
    what is drawn.
    """
    greedy, (decoder,) = self.temperature == 0, decoders

    def draw(uniform, hidden):
      logits = policy.token_logits(
        decoder.params, config, hidden, 1.0 if greedy else self.temperature
      )
      token = sampling.sample(
        uniform[:2],
        logits,
        greedy=greedy,
        top_k=self.top_k,
        top_p=self.top_p,
      )
      if len(uniform) > 2:
        given = uniform[2].astype(jnp.int32)
        token = jnp.where(given >= 0, given, token)
      return token, logits[token] - jax.nn.logsumexp(logits)

    return draw


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
  forced: Int[Array, "P G R"] | None = None,
) -> tuple[Array, Array, Array]:
  """Samples G answers per prompt after a prefix.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `vlm.prefill`.
    key: PRNG key, or one per prompt.
    answers: G.
    length: R, the most tokens of an answer, its end included.
    temperature: divides the logits; 0 is greedy.
    top_k: see `sampling.sample`.
    top_p: see `sampling.sample`.
    forced: ids that stand in place of what is drawn; -1 where it is free.

  Returns:
    (tokens, mask, logprobs), each [P, G, R]. The log-probabilities are of the
    policy at this temperature without top-k or top-p, as training scores them.
  """
  way, batch = Sampling(temperature, top_k, top_p), (len(prefix.mask), answers)
  keys = decode_loop.prompt_keys(key, len(prefix.mask))
  # Drawn before the loop: two numbers per token take little memory.
  uniform = jax.vmap(lambda key: way.numbers(key, answers, length))(keys)
  if forced is not None:
    # Ids are exact in float32 up to 2^24.
    uniform = jnp.concatenate([uniform, forced[..., None]], axis=-1)
  # Where answers are shared out, each device decodes its own.
  prefix, uniform = groups.repeat(prefix, answers), groups.apart(uniform)
  decoder = decode_loop.make_decoder(params, config, prefix)
  draw = way.draw(config, (decoder,))
  found = decode_loop.decode_answers(draw, config, (decoder,), uniform)
  tokens, mask, logprobs = (groups.together(x, *batch) for x in found)
  return tokens, mask, logprobs


def rollout(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  key: Array,
  *,
  attention_layers: tuple[int, ...] = (),
  **options,
) -> Batch:
  """Encodes the pictures, prefills the prompts and samples the answers.

  Args:
    params: model parameters, the live training weights.
    config: the architecture.
    prompt: the prompts.
    key: PRNG key, or one per prompt.
    attention_layers: see `vlm.prefill`.
    **options: see `generate`.
  """
  visual = tower.vision(params, config, prompt.patches)
  prefix = vlm.prefill(
    params, config, prompt, visual, attention_layers=attention_layers
  )
  tokens, mask, logprobs = generate(params, config, prefix, key, **options)
  ended = (mask & config.ends(tokens)).any(-1)
  return Batch(
    prompt=prompt,
    visual=visual,
    tokens=tokens,
    mask=mask,
    fields={"ended": ended, "logprobs_sampler": logprobs},
    prefix=prefix,
  )
