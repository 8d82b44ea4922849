"""Two policies of a model: over tokens, and over positions to attend to.

Behaviour, current, reference and teacher all go through `score`, at the same
precision, or a divergence between them would measure noise. `Forward` is a
model bound to its parameters, for passes of a function's own.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mmrl.machines import groups
from mmrl.models import rows, tower, vlm, vocabulary
from mmrl.models.config import ModelConfig
from mmrl.models.passes import latent, segments
from mmrl.types import (
  Attention,
  Logits,
  Output,
  Patches,
  Prefix,
  Prompt,
  PyTree,
  Scores,
)


def token_logits(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  temperature: float,
) -> Float[Array, "*batch V"]:
  """Computes logits of the token policy.

  Placeholders are banned, and the logits divided by the temperature. The
  sampler draws from these; `token_logprobs` computes the same part by part, so
  that the log-probabilities of the two differ by rounding only.
  """
  entries = np.arange(config.text.vocab_size)
  banned = np.isin(entries, config.banned_token_ids)
  values = vlm.logits(params, config, hidden) / temperature
  return jnp.where(banned, vocabulary.BANNED, values)


def lazy_logits(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  temperature: float = 1.0,
) -> Logits:
  """Returns the token policy's logits, not computed yet."""
  head, pattern = vlm.head(params, config)
  return Logits(hidden, head, pattern, config.banned_token_ids, temperature)


def token_logprobs(
  logits: Logits, tokens: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Computes `tokens`' log-probabilities and their distributions' entropies.

  [rows, V] logits are never held in full: see `mmrl.models.vocabulary`.

  Args:
    logits: logits that each token was drawn from.
    tokens: ids.

  Returns:
    (log-probabilities, entropies), float32, in nats.
  """
  found = vocabulary.chosen(
    groups.flat(logits.hidden, tokens.shape),
    logits.head,
    groups.flat(tokens, tokens.shape),
    pattern=logits.pattern,
    banned=logits.banned,
    temperature=logits.temperature,
  )
  logprobs, entropies = (groups.unflat(x, tokens.shape) for x in found)
  return logprobs, entropies


def score(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  tokens: Int[Array, "P G R"],
  *,
  temperature: float = 1.0,
  attention_layers: tuple[int, ...] = (),
  attention_row: str = "self",
  heads_apart: bool = False,
  hidden_layers: tuple[int, ...] = (),
) -> Scores:
  """Computes log-probabilities, entropies and attention policies of answers.

  Both are 0 for the tokens of latent segments that a policy doesn't choose.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `vlm.prefill` under the same parameters and with the same
      `attention_layers`.
    tokens: answer ids, right-padded.
    temperature: the sampling temperature.
    attention_layers: layers whose attention is a policy; none if empty.
    attention_row, heads_apart: see `rows.attention_policy`.
    hidden_layers: see `vlm.extend`.
  """
  inputs = latent.embed(params, config, prefix, tokens)
  output = vlm.extend(
    params,
    config,
    prefix,
    inputs,
    attention_layers=attention_layers,
    tokens=tokens,
    hidden_layers=hidden_layers,
  )
  first = prefix.last_hidden[:, None, None]
  first = jnp.broadcast_to(first, (*tokens.shape[:2], 1, first.shape[-1]))
  hidden = jnp.concatenate([first, output.hidden[:, :, :-1]], axis=2)
  logits = lazy_logits(params, config, hidden, temperature)
  known = tokens
  if config.latent:
    # What is banned has no log-probability worth a gradient.
    own = segments.chosen(tokens, config.latent)
    known = jnp.where(own, tokens, config.eos_token_id)
  logprobs, entropies = token_logprobs(logits, known)
  if config.latent:
    logprobs, entropies = (
      jnp.where(own, x, 0.0) for x in (logprobs, entropies)
    )
  attention = None
  if isinstance(output.attention, Attention):
    attention = rows.attention_policy(
      output.attention, row=attention_row, apart=heads_apart
    )
  states = {
    layer: output.hidden_at[:, :, :, i]
    for i, layer in enumerate(hidden_layers)
    if output.hidden_at is not None
  }
  return Scores(logprobs, entropies, attention, logits, states)


@dataclasses.dataclass(frozen=True)
class Forward:
  """The functions of a model with its parameters and architecture filled in.

  A loss term that names `forward` differentiates through what it calls.

  Attributes:
    params: the parameters.
    config: the architecture.
  """

  params: PyTree
  config: ModelConfig

  def vision(self, patches: Patches) -> Float[Array, "B N E"]:
    """Encodes pictures; see `models.vision`."""
    return tower.vision(self.params, self.config, patches)

  def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Embeds tokens; see `models.embed`."""
    return vlm.embed(self.params, self.config, tokens)

  def prefill(
    self, prompt: Prompt, visual: Float[Array, "B N E"], **options
  ) -> Prefix:
    """Prefills prompts; see `models.prefill`."""
    return vlm.prefill(self.params, self.config, prompt, visual, **options)

  def extend(
    self, prefix: Prefix, inputs: Float[Array, "P G R D"], **options
  ) -> Output:
    """Runs answers after a prefix; see `models.extend`."""
    return vlm.extend(self.params, self.config, prefix, inputs, **options)

  def score(
    self, prefix: Prefix, tokens: Int[Array, "P G R"], **options
  ) -> Scores:
    """Scores answers after a prefix; see `models.score`."""
    return score(self.params, self.config, prefix, tokens, **options)
