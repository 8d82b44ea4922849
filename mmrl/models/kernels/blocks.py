"""Which blocks of keys a query attends to.

Keys are cut into blocks from the first real token on. A query attends to the
blocks at the beginning, to those of its local window, and to the `top_k` others
whose pooled keys it scores highest. The choice has no gradient.

PHSA (arXiv 2601.02819) pools the mean of a block's keys and the mean of its
punctuation's; InfLLM-v2, the baseline, pools overlapping windows, as its
published kernels do.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.models.kernels.blocked import MASKED

__all__ = ["infllm_v2", "punctuation_sparse"]

# InfLLM-v2's windows: two strides each, and four strides a block.
_STRIDE, _STRIDES = 16, 4


@dataclasses.dataclass(frozen=True)
class Sparse:
  """Which keys a query attends to; hashable.

  Attributes:
    block: keys of a block, m.
    init: tokens at the beginning that every query attends to, whose blocks are
      taken whole.
    local: last tokens, the query's own among them, likewise.
    top_k: K, blocks that are chosen by score.
    mix: share of the mean over all keys in a block's pooled key, lambda; the
      rest is the mean over its punctuation.
    marks: which punctuation there is: "en", or "en+zh".
    punctuation: ids of the tokens that are punctuation.
    windows: whether InfLLM-v2's windows are scored, instead of blocks, and K
      counts the blocks of `init` and `local`, too.
  """

  block: int
  init: int
  local: int
  top_k: int
  mix: float = 1.0
  marks: str = ""
  punctuation: tuple[int, ...] = ()
  windows: bool = False

  @property
  def unit(self) -> int:
    """Keys that are summed together."""
    return _STRIDE if self.windows else self.block

  @property
  def first(self) -> int:
    """Blocks at the beginning."""
    return -(-self.init // self.block)

  @property
  def active(self) -> int:
    """Keys that a query attends to at most; a window's edges may add some."""
    chosen = self.top_k * self.block
    return chosen if self.windows else self.init + self.local + chosen

  def local_first(self, position: Any) -> Any:
    """Returns the first block of the window of a query; may be negative."""
    return (position - self.local + 1) // self.block

  def is_punctuation(self, tokens: Int[Array, "*batch"]) -> Bool[Array, "..."]:
    """Tells which tokens are punctuation."""
    size = max(self.punctuation, default=0) + 2
    table = np.isin(np.arange(size), self.punctuation)
    return jnp.take(jnp.asarray(table), tokens, mode="clip")


def punctuation_sparse(
  *,
  block: int = 16,
  init: int = 16,
  local: int = 128,
  top_k: int = 2,
  mix: float = 0.5,
  marks: Literal["en", "en+zh"] = "en",
) -> Sparse:
  """Attends to blocks by their mean and their punctuation (PHSA).

      M(B) = mix mean(B) + (1 - mix) mean(punctuation of B)

  With mix = 1, or without punctuation, that is mean pooling. The defaults are
  the paper's for 4,096 tokens; for 32,768 they are init = 128, local = 512.

  Args:
    block: keys of a block, m.
    init: tokens at the beginning that every query attends to.
    local: last tokens that it attends to, its own among them.
    top_k: further blocks, by score: K.
    mix: in [0, 1]; lambda.
    marks: English punctuation, or Chinese marks as well.

  Raises:
    UserError: if a value is out of its range, or of another type.

  Reference: arXiv 2601.02819.
  Reconstructed: keys are pooled after their rotation; scores are a softmax over
  complete blocks, summed over the query heads of a key head; blocks that touch
  the first or local tokens are whole, and stand outside of K.
  """
  for name, value, least in (
    ("block", block, 1),
    ("init", init, 0),
    ("local", local, 1),
    ("top_k", top_k, 1),
  ):
    _check(name, value, least)
  number = isinstance(mix, int | float) and not isinstance(mix, bool)
  if not number or not 0 <= mix <= 1:
    raise UserError(f"expected mix to be a number in [0, 1], found {mix!r}")
  return Sparse(block, init, local, top_k, float(mix), marks)


def infllm_v2(
  *, top_k: int, init_blocks: int = 1, local_blocks: int = 8
) -> Sparse:
  """Attends to blocks of 64 by windows of 32 keys, 16 apart (InfLLM-v2).

  A block's score is the largest of the five windows that touch it. K counts
  all blocks, those at the beginning and the local ones among them.

  Args:
    top_k: K; more than the blocks that are always attended to.
    init_blocks: blocks at the beginning.
    local_blocks: blocks before the query's own.

  Raises:
    UserError: if a value is out of its range, or of another type.

  Reference: the kernels infllmv2_cuda_impl of OpenBMB.
  """
  _check("init_blocks", init_blocks, 0)
  _check("local_blocks", local_blocks, 0)
  _check("top_k", top_k, init_blocks + local_blocks + 2)
  block = _STRIDE * _STRIDES
  return Sparse(
    block,
    init=init_blocks * block,
    local=local_blocks * block + 1,
    top_k=top_k,
    windows=True,
  )


def _check(name: str, value: Any, least: int) -> None:
  good = isinstance(value, int) and not isinstance(value, bool)
  if not good or value < least:
    raise UserError(
      f"expected {name} to be a whole number of at least {least}, found"
      f" {value!r}"
    )


def sparsity(sparse: Sparse, length: int) -> float:
  """Computes the share of `length` keys that the last query leaves out.

      max(0, 1 - (init + local + K m) / length)

  It is nominal: that windows are made of whole blocks adds up to m - 1 keys.
  """
  return max(0.0, 1 - sparse.active / length)


def own_blocks(count: int, unit: int) -> int:
  """Returns the most blocks that `count` tokens touch, wherever they begin."""
  return (count + unit - 2) // unit + 1


def sums(
  keys: Float[Array, "P *groups K U head"],
  marks: Bool[Array, "P *groups U"],
  index: Int[Array, "P keys"],
  real: Bool[Array, "P keys"],
  unit: int,
) -> Float[Array, "P *groups K N sums"]:
  """Sums the keys of blocks, and their number: of all, and of punctuation.

  Args:
    keys: rotated.
    marks: True on punctuation.
    index: which of the U keys is at each place of the blocks, N * unit places.
    real: whether there is one.
    unit: keys of a block.

  Returns:
    2 (head + 1) sums for each block, float32: they add up over parts of a
    block. They have no gradient.
  """
  keys = jax.lax.stop_gradient(keys).astype(jnp.float32)
  keys = jax.vmap(lambda x, i: jnp.take(x, i, axis=-2, mode="clip"))(
    keys, index
  )
  ones = jnp.ones((*keys.shape[:-1], 1), jnp.float32)
  keys = jnp.concatenate([keys, ones], -1)
  keys = keys.reshape(*keys.shape[:-2], -1, unit, keys.shape[-1])
  marks = jax.vmap(lambda x, i: jnp.take(x, i, axis=-1, mode="clip"))(
    marks, index
  )
  real = real.reshape(len(real), *[1] * (marks.ndim - 2), -1)
  weights = jnp.stack(jnp.broadcast_arrays(real, marks & real), -1)
  weights = weights.reshape(*marks.shape[:-1], -1, unit, 2)
  found = jnp.einsum(
    "...knmd,...nmc->...kncd", keys, weights.astype(jnp.float32)
  )
  return found.reshape(*found.shape[:-2], -1)


def add(
  total: Float[Array, "P G K N sums"],
  keys: Float[Array, "P G K 1 head"],
  marks: Bool[Array, "P G"],
  block: Int[Array, "P"],
) -> Float[Array, "P G K N sums"]:
  """Adds one token of each answer to the sums of a block."""
  one = jnp.concatenate([keys, jnp.ones_like(keys[..., :1])], -1)
  one = one.astype(jnp.float32)
  one = jnp.concatenate([one, one * marks[..., None, None, None]], -1)
  hit = jnp.arange(total.shape[-2])[None] == block[:, None]
  return total + one * hit[:, None, None, :, None]


def pooled(
  found: Float[Array, "*batch sums"], mix: float
) -> Float[Array, "*batch head"]:
  """Computes a block's key from its sums; zero if it has no real token.

  M = mean + (1 - mix) (mean of punctuation - mean)
  """
  every, marked = jnp.split(found, 2, axis=-1)
  mean = every[..., :-1] / jnp.maximum(every[..., -1:], 1)
  count = marked[..., -1:]
  of_marks = marked[..., :-1] / jnp.maximum(count, 1)
  return mean + (1 - mix) * jnp.where(count > 0, of_marks - mean, 0)


def block_scores(
  raw: Float[Array, "P G T K rep N"], position: Int[Array, "P T"], unit: int
) -> Float[Array, "P G T K N"]:
  """Computes the probability of each complete block, summed over heads.

  Args:
    raw: products of scaled queries and pooled keys.
    position: of each query, among the real tokens.
    unit: keys of a block.
  """
  last = (jnp.arange(raw.shape[-1]) + 1) * unit - 1
  complete = last[None, None] <= position[..., None]
  complete = complete[:, None, :, None, None]
  found = jax.nn.softmax(jnp.where(complete, raw, MASKED), axis=-1)
  return jnp.where(complete, found, 0).sum(-2)


def window_scores(
  raw: Float[Array, "P G T K rep N"], position: Int[Array, "P T"]
) -> Float[Array, "P G T K blocks"]:
  """Computes InfLLM-v2's scores of blocks from products with its strides.

  Args:
    raw: products with the mean key of each stride.
    position: of each query, among the real tokens.
  """
  windows = (raw[..., :-1] + raw[..., 1:]) / 2
  # A window ends one stride later than it begins.
  found = block_scores(windows, position - _STRIDE, _STRIDE)
  return window_maximum(found)


def window_maximum(
  found: Float[Array, "*batch windows"],
) -> Float[Array, "*batch blocks"]:
  """Returns the largest score of windows 4 t - 1 to 4 t + 3 of each block t."""
  # As many as the strides reach, one more than there are windows.
  blocks = -(-(found.shape[-1] + 1) // _STRIDES)
  after = (blocks + 1) * _STRIDES - 1 - found.shape[-1]
  sides = [(0, 0)] * (found.ndim - 1) + [(1, after)]
  found = jnp.pad(found, sides)
  parts = [
    found[..., i : i + blocks * _STRIDES : _STRIDES]
    for i in range(_STRIDES + 1)
  ]
  return functools.reduce(jnp.maximum, parts)


def choose(
  scores: Float[Array, "P G T K N"],
  position: Int[Array, "P T"],
  sparse: Sparse,
) -> Int[Array, "P G T K top"]:
  """Chooses blocks beside those that a query attends to anyway.

  Returns:
    K blocks, the best first, of equal ones the first; -1 is none.
  """
  block = jnp.arange(scores.shape[-1])[None, None]
  at = position[..., None]
  always = (block < sparse.first) | (block >= sparse.local_first(at))
  always &= block * sparse.block <= at
  other = ~always & (block * sparse.block <= at)
  always, other = (x[:, None, :, None] for x in (always, other))
  ranked = jnp.where(other, scores, -1)
  if sparse.windows:
    ranked = jnp.where(always, jnp.inf, ranked)
  count = min(sparse.top_k, scores.shape[-1])
  best, chosen = jax.lax.top_k(jax.lax.stop_gradient(ranked), count)
  chosen = jnp.where((best >= 0) & (best < jnp.inf), chosen, -1)
  more = [(0, 0)] * (chosen.ndim - 1) + [(0, sparse.top_k - count)]
  return jnp.pad(chosen, more, constant_values=-1)


def seen(
  chosen: Int[Array, "... top"],
  position: Int[Array, "..."],
  keys: Int[Array, "... keys"],
  sparse: Sparse,
) -> Bool[Array, "... keys"]:
  """Tells which keys a query attends to; all axes may be of length 1.

  Args:
    chosen: from `choose`.
    position: of the query.
    keys: positions of the keys; negative ones are none.
    sparse: which blocks are always attended to.
  """
  at, block = position[..., None], keys // sparse.block
  found = (block < sparse.first) | (block >= sparse.local_first(at))
  for i in range(chosen.shape[-1]):
    found = found | (block == chosen[..., i, None])
  return found & (keys >= 0) & (keys <= at)
