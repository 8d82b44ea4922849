"""Attention over sequences, windows, and a prefix that answers share.

Everything here is a pure function of rotated queries, keys and values. Scores
and softmax are float32; products with values return to the input type.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.models.kernels import blocked, cudnn
from mmrl.models.kernels import working as working_lib
from mmrl.models.kernels.blocked import MASKED
from mmrl.models.kernels.working import Working

# Attention maps of fewer numbers are computed whole, others block by block: on
# a TPU by its own kernel, on a GPU by cuDNN's for the types and heads it takes.
DENSE_VALUES = 2**22


def rotary_angles(
  positions: Int[Array, "*batch axes"], axes: tuple[int, ...], theta: float
) -> Float[Array, "*batch half"]:
  """Computes rotary angles whose channels are divided among position axes.

      angle_c = position[axes[c]] / theta^(c / half)

  M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) has the axes time, height,
  width; `TextConfig.rotary_axes` gives the axis that each channel reads.

  Args:
    positions: position of each token on each axis.
    axes: the axis that each of the `half` channels reads.
    theta: the base.
  """
  channel = jnp.arange(len(axes), dtype=jnp.float32)
  angles = positions[..., list(axes)].astype(jnp.float32)
  scale = theta ** (channel / len(axes))
  return angles / jnp.broadcast_to(scale, angles.shape)


def axial_angles(
  rows_columns: Int[Array, "*batch 2"], head_dim: int
) -> Float[Array, "*batch half"]:
  """Computes rotary angles of the vision tower.

  Half the channels read the row, half the column; the base is 1e4.
  """
  quarter = head_dim // 4
  channel = jnp.arange(quarter, dtype=jnp.float32)
  scale = 1e4 ** (channel / quarter)
  angles = rows_columns[..., None].astype(jnp.float32) / jnp.broadcast_to(
    scale, (*rows_columns.shape, quarter)
  )
  return angles.reshape(*angles.shape[:-2], 2 * quarter)


def rotate(
  x: Float[Array, "*batch heads head"], angles: Float[Array, "*batch half"]
) -> Float[Array, "*batch heads head"]:
  """Rotates channel pairs (c, c + half) of every head by `angles`."""
  cos = jnp.cos(angles)[..., None, :]
  sin = jnp.sin(angles)[..., None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def group(
  queries: Float[Array, "*batch H head"], kv_heads: int
) -> Float[Array, "*batch K rep head"]:
  """Groups query heads by the key head they read, scaled for the softmax."""
  *batch, heads, size = queries.shape
  return queries.reshape(*batch, kv_heads, heads // kv_heads, size) * size**-0.5


def causal_mask(mask: Bool[Array, "P S"]) -> Bool[Array, "P S S"]:
  """Turns a key mask into the mask of a causal sequence."""
  return mask[:, None, :] & jnp.tri(mask.shape[-1], dtype=bool)[None]


def weights(
  queries: Float[Array, "*batch T H head"],
  keys: Float[Array, "*batch U K head"],
  mask: Bool[Array, "*batch #T U"],
) -> Float[Array, "*batch K rep T U"]:
  """Computes attention probabilities, float32, one map per query head."""
  return weights_by_head(queries, keys, mask[..., None, None, :, :])


def weights_by_head(
  queries: Float[Array, "*batch T H head"],
  keys: Float[Array, "*batch U K head"],
  mask: Bool[Array, "*batch #K #rep #T U"],
) -> Float[Array, "*batch K rep T U"]:
  """Computes attention probabilities under masks that may differ by head."""
  grouped = group(queries, keys.shape[-2])
  scores = jnp.einsum(
    "...tkhd,...ukd->...khtu",
    grouped,
    keys,
    preferred_element_type=jnp.float32,
  )
  return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


def attend(
  queries: Float[Array, "*batch T H head"],
  keys: Float[Array, "*batch U K head"],
  values: Float[Array, "*batch U K head"],
  mask: Bool[Array, "*batch #T U"],
) -> Float[Array, "*batch T H head"]:
  """Computes softmax attention of T queries over U keys."""
  return attend_by_head(queries, keys, values, mask[..., None, None, :, :])


def attend_by_head(
  queries: Float[Array, "*batch T H head"],
  keys: Float[Array, "*batch U K head"],
  values: Float[Array, "*batch U K head"],
  mask: Bool[Array, "*batch #K #rep #T U"],
) -> Float[Array, "*batch T H head"]:
  """Computes softmax attention under masks that may differ by head."""
  probabilities = weights_by_head(queries, keys, mask).astype(values.dtype)
  out = jnp.einsum("...khtu,...ukd->...tkhd", probabilities, values)
  return out.reshape(queries.shape)


def attend_causal(
  queries: Float[Array, "P S H head"],
  keys: Float[Array, "P S K head"],
  values: Float[Array, "P S K head"],
  mask: Bool[Array, "P S"],
) -> Float[Array, "P S H head"]:
  """Computes attention of each token over itself and the real ones before.

  Args:
    queries, keys, values: of whole sequences.
    mask: True on real tokens, which are contiguous.

  Returns:
    The output; on padding it is meaningless.
  """
  prompts, count, heads = queries.shape[:3]
  if prompts * heads * count**2 <= DENSE_VALUES:
    return attend(queries, keys, values, causal_mask(mask))

  from mmrl.models.kernels import splash  # Pallas: a tenth of all imports

  # Chosen when lowered: a program for another machine has that one's kernel.
  kernels: dict[str, Callable] = {"tpu": splash.attend_causal}
  if cudnn.takes(queries):
    kernels["cuda"] = cudnn.attend_causal
  return jax.lax.platform_dependent(
    queries, keys, values, mask, **kernels, default=blocked.attend_causal
  )


def attend_windows(
  queries: Float[Array, "B M H head"],
  keys: Float[Array, "B M H head"],
  values: Float[Array, "B M H head"],
  windows: Int[Array, "B W patches"],
  window_slot: Int[Array, "B M"],
) -> Float[Array, "B M H head"]:
  """Computes attention inside windows, gathered: linear in patches."""

  def gather(x):
    index = jnp.maximum(windows, 0).reshape(windows.shape[0], -1)
    taken = jnp.take_along_axis(x, index[..., None, None], axis=1)
    return taken.reshape(*windows.shape, *x.shape[2:])

  mask = (windows >= 0)[:, :, None, :]
  out = attend(gather(queries), gather(keys), gather(values), mask)
  out = out.reshape(out.shape[0], -1, *out.shape[3:])
  return jnp.take_along_axis(out, window_slot[..., None, None], axis=1)


def attend_prefix(
  queries: Float[Array, "n W T H head"],
  prefix_keys: Float[Array, "P K S head"],
  prefix_values: Float[Array, "P K S head"],
  prefix_mask: Bool[Array, "P S"] | Bool[Array, "P K G T 1 S"],
  keys: Float[Array, "n W K U head"],
  values: Float[Array, "n W K U head"],
  mask: Bool[Array, "T U"] | Bool[Array, "n W #K T 1 U"],
  working: Working | None = None,
) -> Float[Array, "n W T H head"]:
  """Computes attention of G answers over their shared prefix and themselves.

  One softmax over S + U keys. The prefix is read once for all G * T queries
  of a prompt: no copy of it per answer exists. Keys and values come heads
  first: every product of scores is then one matrix product, without a
  transpose.

  Args:
    queries: T new tokens of each answer, [P, G, ...].
    prefix_keys, prefix_values: the prompt's, once per prompt.
    prefix_mask: True on real prompt tokens, or on those that each query sees.
    keys, values: the answer's own.
    mask: which own keys each new token sees, or each of its key heads.
    working: which answers queries, keys, values and mask are of, if not all.
  """
  grouped = group(queries, keys.shape[2])
  over_prefix = jnp.einsum(
    "pgtkhd,pksd->pkgths",
    working_lib.spread(grouped, working),
    prefix_keys,
    preferred_element_type=jnp.float32,
  )
  over_own = jnp.einsum(
    "pgtkhd,pgkud->pgkthu",
    grouped,
    keys,
    preferred_element_type=jnp.float32,
  )
  if prefix_mask.ndim == 2:
    prefix_mask = prefix_mask[:, None, None, None, None, :]
  if mask.ndim == 2:
    mask = mask[:, None]
  over_prefix = jnp.where(prefix_mask, over_prefix, MASKED)
  over_own = jnp.where(mask, over_own, MASKED)

  def to_answers(x):  # [P, K, G, ...]
    return working_lib.take(jnp.moveaxis(x, 1, 2), working)

  def to_prompts(x):
    return jnp.moveaxis(working_lib.spread(x, working), 1, 2)

  # One softmax in two parts: the parts share the maximum and the sum.
  top = jnp.maximum(to_answers(over_prefix.max(-1)), over_own.max(-1))
  top = jax.lax.stop_gradient(top)
  over_prefix = jnp.exp(over_prefix - to_prompts(top)[..., None])
  over_own = jnp.exp(over_own - top[..., None])
  total = to_answers(over_prefix.sum(-1)) + over_own.sum(-1)
  out = to_answers(
    jnp.einsum(
      "pkgths,pksd->pkgthd",
      over_prefix.astype(values.dtype),
      prefix_values,
      preferred_element_type=jnp.float32,
    )
  ) + jnp.einsum(
    "pgkthu,pgkud->pgkthd",
    over_own.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  out = jnp.moveaxis(out / total[..., None], 2, 3)
  return out.astype(values.dtype).reshape(queries.shape)


def attend_answers(
  queries: Float[Array, "P G R H head"],
  prefix_keys: Float[Array, "P S K head"],
  prefix_values: Float[Array, "P S K head"],
  prefix_mask: Bool[Array, "P S"],
  keys: Float[Array, "P G R K head"],
  values: Float[Array, "P G R K head"],
) -> Float[Array, "P G R H head"]:
  """Computes attention of answers over their shared prompt and themselves.

  See `attend_prefix`. Long answers are computed block by block: the answers of
  a prompt are concatenated after it, and each token sees two runs of keys; for
  cuDNN each answer is a sequence of its own.
  """
  answers, count = queries.shape[1:3]
  length = prefix_mask.shape[-1]
  if queries.size // queries.shape[-1] * (length + count) <= DENSE_VALUES:
    mask = jnp.tri(count, dtype=bool)
    return attend_prefix(
      queries,
      jnp.swapaxes(prefix_keys, 1, 2),
      jnp.swapaxes(prefix_values, 1, 2),
      prefix_mask,
      jnp.swapaxes(keys, 2, 3),
      jnp.swapaxes(values, 2, 3),
      mask,
    )

  from mmrl.models.kernels import splash  # as above

  by_splash = functools.partial(splash.attend_answers, answers=answers)
  by_blocks = functools.partial(blocked.attend_answers, answers=answers)
  kernels: dict[str, Callable] = {"tpu": in_line(by_splash)}
  if cudnn.takes(queries):
    kernels["cuda"] = cudnn.attend_answers
  return jax.lax.platform_dependent(
    queries,
    prefix_keys,
    prefix_values,
    prefix_mask,
    keys,
    values,
    **kernels,
    default=in_line(by_blocks),
  )


def in_line(attend: Callable) -> Callable:
  """Applies `attend` to answers that are concatenated after their prompt.

  Args:
    attend: as `blocked.attend_answers`, with the number of answers.

  Returns:
    A function as `attend_answers`.
  """

  def attend_all(queries, prefix_keys, prefix_values, mask, keys, values):
    def joined(prefix, own):
      own = own.reshape(own.shape[0], -1, *own.shape[3:])
      return jnp.concatenate([prefix, own], axis=1)

    out = attend(
      queries.reshape(queries.shape[0], -1, *queries.shape[3:]),
      joined(prefix_keys, keys),
      joined(prefix_values, values),
      mask,
    )
    return out.reshape(queries.shape)

  return attend_all
