"""The two policies of a model: over tokens, and over positions to attend to.

Behaviour, current, reference and teacher all go through `score`, at the same
precision, or a divergence between them would measure noise.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mmrl.models import rows, vlm, vocabulary
from mmrl.models.config import ModelConfig
from mmrl.types import Prefix, PyTree, Scores


def token_logits(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  temperature: float,
) -> Float[Array, "*batch V"]:
  """Logits of the token policy: placeholders banned, divided by temperature.

  The sampler draws from these; `token_logprobs` computes the same part by part,
  so that the log-probabilities of the two differ by rounding only.
  """
  entries = np.arange(config.text.vocab_size)
  banned = np.isin(entries, config.banned_token_ids)
  values = vlm.logits(params, config, hidden) / temperature
  return jnp.where(banned, vocabulary.BANNED, values)


def token_logprobs(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  tokens: Int[Array, "*batch"],
  temperature: float = 1.0,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Log-probabilities of `tokens` and entropies of their distributions.

  [rows, V] logits are never held in full: see `mmrl.models.vocabulary`.

  Args:
    params: model parameters.
    config: the architecture.
    hidden: hidden state that emits each token.
    tokens: ids.
    temperature: divides the logits, as when sampling.

  Returns:
    (log-probabilities, entropies), float32, in nats.
  """
  head, pattern = vlm.head(params, config)
  found = vocabulary.chosen(
    hidden.reshape(-1, hidden.shape[-1]),
    head,
    tokens.reshape(-1),
    pattern=pattern,
    banned=config.banned_token_ids,
    temperature=temperature,
  )
  logprobs, entropies = (x.reshape(tokens.shape) for x in found)
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
) -> Scores:
  """Log-probabilities, entropies and attention policies of given answers.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `vlm.prefill` under the same parameters and with the same
      `attention_layers`.
    tokens: answer ids, right-padded.
    temperature: the sampling temperature.
    attention_layers: layers whose attention is a policy; none if empty.
    attention_row: see `rows.attention_policy`.
  """
  output = vlm.extend(
    params, config, prefix, tokens, attention_layers=attention_layers
  )
  first = prefix.last_hidden[:, None, None]
  first = jnp.broadcast_to(first, (*tokens.shape[:2], 1, first.shape[-1]))
  hidden = jnp.concatenate([first, output.hidden[:, :, :-1]], axis=2)
  logprobs, entropies = token_logprobs(
    params, config, hidden, tokens, temperature
  )
  attention = output.attention
  if attention is not None:
    attention = rows.attention_policy(attention, row=attention_row)
  return Scores(logprobs=logprobs, entropies=entropies, attention=attention)
