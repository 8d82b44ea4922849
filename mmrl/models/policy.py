"""The two policies of a model: over tokens, and over positions to attend to.

Behaviour, current, reference and teacher all go through `score`, at the same
precision, or a divergence between them would measure noise.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models import vlm
from mmrl.models.config import ModelConfig
from mmrl.types import Prefix, PyTree, Scores

# Values of a logits chunk; 64 MiB in float32.
_CHUNK_VALUES = 2**24


def token_logits(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  temperature: float,
) -> Float[Array, "*batch V"]:
  """Logits of the token policy: placeholders banned, divided by temperature.

  Sampler and scorer share this function, so their log-probabilities differ by
  rounding only.
  """
  banned = jnp.array(config.banned_token_ids)
  values = vlm.logits(params, config, hidden)
  return values.at[..., banned].set(-1e30) / temperature


def token_logprobs(
  params: PyTree,
  config: ModelConfig,
  hidden: Float[Array, "*batch D"],
  tokens: Int[Array, "*batch"],
  temperature: float = 1.0,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Log-probabilities of `tokens` and entropies of their distributions.

  Rows go through the output head in chunks that the backward pass computes
  again, so the [rows, V] logits are never held in full.

  Args:
    params: model parameters.
    config: the architecture.
    hidden: hidden state that emits each token.
    tokens: ids.
    temperature: divides the logits, as when sampling.

  Returns:
    (log-probabilities, entropies), float32, in nats.
  """

  @jax.checkpoint
  def chunk(hidden, tokens):
    logits = token_logits(params, config, hidden, temperature)
    logs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logs) * logs, axis=-1)

  shape, rows = tokens.shape, tokens.size
  hidden, tokens = hidden.reshape(rows, -1), tokens.reshape(rows)
  size = max(1, _CHUNK_VALUES // config.text.vocab_size)
  chunks = -(-rows // size)
  if chunks == 1:
    logprobs, entropies = chunk(hidden, tokens)
  else:
    pad = -rows % chunks
    hidden = jnp.pad(hidden, ((0, pad), (0, 0)))
    tokens = jnp.pad(tokens, (0, pad))
    logprobs, entropies = jax.lax.map(
      lambda arrays: chunk(*arrays),
      (
        hidden.reshape(chunks, -1, hidden.shape[-1]),
        tokens.reshape(chunks, -1),
      ),
    )
    logprobs = logprobs.reshape(-1)[:rows]
    entropies = entropies.reshape(-1)[:rows]
  return logprobs.reshape(shape), entropies.reshape(shape)


def attention_policy(
  rows: Float[Array, "P G R keys"],
  prompt_mask: Bool[Array, "P S"],
  last_row: Float[Array, "P S"] | None = None,
  *,
  row: str = "self",
) -> Float[Array, "P G R keys"]:
  """Attention rows as policies over earlier positions (RAL, eq. 2).

      p^t(i) = alpha_{t,i} / sum_{j<t} alpha_{t,j},    i < t

  Args:
    rows: rows of the answer tokens over prompt and answer, from `extend`.
    prompt_mask: True on real prompt tokens.
    last_row: row of the last prompt token, from `prefill`; for `row="emit"`.
    row: "self", the row of token t with its own position dropped and the
      rest renormalised, or "emit", the row t-1 whose logits emit token t
      (the last prompt token's for the first), which sums to one already.

  Returns:
    The policy of each answer token. Padding, later positions and, with
    "self", the token itself are exactly zero; a row with no earlier position
    is all zero.

  Raises:
    ValueError: if `row` is neither, or `last_row` is missing for "emit".

  Reference: arXiv 2602.04884, eq. 2.
  Reconstructed: the paper doesn't say which row "position t" is; "self" is
  the reading in which its normaliser does something.
  """
  answers, count = rows.shape[1:3]
  if row == "emit":
    if last_row is None:
      raise ValueError(
        "row='emit' needs last_row, the row of the last prompt token"
      )
    first = jnp.pad(last_row, ((0, 0), (0, count)))[:, None, None]
    first = jnp.broadcast_to(
      first, (first.shape[0], answers, 1, first.shape[-1])
    )
    rows = jnp.concatenate([first, rows[:, :, :-1]], axis=2)
  elif row != "self":
    raise ValueError(f"row must be 'self' or 'emit', got {row!r}")
  earlier = jnp.tri(count, k=-1, dtype=bool)
  valid = jnp.concatenate(
    [
      jnp.broadcast_to(
        prompt_mask[:, None, :],
        (prompt_mask.shape[0], count, prompt_mask.shape[1]),
      ),
      jnp.broadcast_to(earlier, (prompt_mask.shape[0], count, count)),
    ],
    axis=-1,
  )[:, None]
  rows = jnp.where(valid, rows, 0.0)
  total = rows.sum(-1, keepdims=True)
  # The sum goes through `where` before the division, or 0/0 would put NaN in
  # the gradient of rows without an earlier position.
  return jnp.where(total > 0, rows / jnp.where(total > 0, total, 1.0), 0.0)


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
    attention_row: see `attention_policy`.
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
  attention = None
  if attention_layers:
    attention = attention_policy(
      output.attention, prefix.mask, prefix.last_row, row=attention_row
    )
  return Scores(logprobs=logprobs, entropies=entropies, attention=attention)
