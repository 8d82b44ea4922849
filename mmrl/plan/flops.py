"""Model FLOPs, by the equations of a model and of a training step.

A multiply and an add are 2. Matrix products count; norms, activations, softmax
and the optimiser, which are a few percent, don't. Padding doesn't count, nor
does what is computed twice to save memory (`ModelConfig.remat`, chunks of
logits and attention rows): this is the work, not how it was done, so that
`model FLOPs / seconds / peak` is the share of the machine that was put to use.

With T tokens, of which each attends to some of the others (`pairs` in all),
a decoder of L layers, width D, H query and K key/value heads of size h, inner
width I and vocabulary V takes

    layers(T, pairs) = 2 T L (2 D H h + 2 D K h + 3 D I) + 4 pairs L H h
    prefill(S)       = layers(S, S (S + 1) / 2)
    extend(S, G, R)  = layers(G R, G (R S + R (R + 1) / 2))
    head(T)          = 2 T D V
    rows(S, G, R)    = 2 G (R S + R (R + 1) / 2) B H h

the last for the attention rows of B layers, whose scores are recomputed. Where
attention is sparse, a token attends to at most A keys (`Sparse.active`), and
scores every block of m keys before it: pairs are sum min(A, keys) + keys / 2 m.
A vision tower of depth d, width w and inner width i takes, for M patches of C
values in frames f of windows v, with u patches to a visual token,

    patch_embed = 2 M C w
    blocks      = 2 M d (4 w^2 + (3 or 2) w i) + 4 w sum_blocks pairs
    pairs       = sum_f |f|^2 in a block of full attention, else sum_v |v|^2
    mergers     = 2 (M / u) (1 + stacks) ((u w)^2 + u w D)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmrl.models.config import ModelConfig
from mmrl.models.families.family import Grid

# In the order in which data flows through them.
VISION = ("patch_embed", "blocks", "mergers")
PARTS = (*VISION, "layers", "head")


class Work(NamedTuple):
  """FLOPs of the forward pass of a part of the model.

  Attributes:
    dense: of products with parameters.
    maps: of attention scores and of the products with them.
  """

  dense: int
  maps: int = 0


def vision(config: ModelConfig, grids: Sequence[Grid]) -> dict[str, Work]:
  """Counts FLOPs of the tower's parts on pictures and videos of these grids."""
  tower = config.vision
  width, inner = tower.hidden_size, tower.intermediate_size
  merged = width * tower.spatial_merge_size**2
  patches = sum(t * rows * columns for t, rows, columns in grids)
  tokens = patches // tower.spatial_merge_size**2
  full = len(set(tower.fullatt_block_indexes) & set(range(tower.depth)))
  if not tower.window_size:
    full = tower.depth
  pairs = full * sum(t * (rows * columns) ** 2 for t, rows, columns in grids)
  if full < tower.depth:
    pairs += (tower.depth - full) * sum(_window_pairs(config, g) for g in grids)
  block = 4 * width**2 + (3 if tower.gated_mlp else 2) * width * inner
  merger = merged**2 + merged * tower.out_hidden_size
  mergers = 1 + len(tower.deepstack_visual_indexes)
  return {
    "patch_embed": Work(2 * patches * tower.patch_values * width),
    "blocks": Work(2 * patches * tower.depth * block, 4 * width * pairs),
    "mergers": Work(2 * tokens * mergers * merger),
  }


def _window_pairs(config: ModelConfig, grid: Grid) -> int:
  """Sums squared window sizes; windows at the right and lower edge are cut.

  With sides a of the windows of a column and b of a row, in visual tokens,

      sum_ab (a b u)^2 = u^2 (sum a^2) (sum b^2)
  """
  merge, side = config.vision.spatial_merge_size, config.vision.window_cells

  def squares(patches):
    whole, rest = divmod(patches // merge, side)
    return whole * side**2 + rest**2

  frames, rows, columns = grid
  return frames * merge**4 * squares(rows) * squares(columns)


def _layers(config: ModelConfig, tokens: int, pairs: int) -> Work:
  text = config.text
  heads = text.num_attention_heads * text.head_dim
  kv_heads = text.num_key_value_heads * text.head_dim
  layer = 2 * heads + 2 * kv_heads + 3 * text.intermediate_size
  depth, width = text.num_hidden_layers, text.hidden_size
  return Work(2 * tokens * depth * width * layer, 4 * pairs * depth * heads)


def _answer_pairs(length: int, answers: int, count: int) -> int:
  return answers * (count * length + count * (count + 1) // 2)


def _pairs(config: ModelConfig, before: int, count: int) -> int:
  """Counts the keys of `count` tokens that stand behind `before` others."""
  every = _answer_pairs(before, 1, count)
  if config.sparse is None:
    return every
  keys = np.arange(before, before + count) + 1
  scored = every // (2 * config.sparse.unit)
  return int(np.minimum(keys, config.sparse.active).sum()) + scored


def prefill(config: ModelConfig, length: int) -> Work:
  """Counts FLOPs of the decoder on a prompt of `length` tokens."""
  return _layers(config, length, _pairs(config, 0, length))


def extend(config: ModelConfig, length: int, answers: int, count: int) -> Work:
  """Counts FLOPs of answers of `count` tokens to a shared prompt of `length`.

  Decoding them token by token is the same work.
  """
  pairs = answers * _pairs(config, length, count)
  return _layers(config, answers * count, pairs)


def head(config: ModelConfig, tokens: int) -> Work:
  """Counts FLOPs of the logits of `tokens` tokens."""
  return Work(2 * tokens * config.text.hidden_size * config.text.vocab_size)


def rows(
  config: ModelConfig, length: int, answers: int, count: int, layers: int
) -> Work:
  """Counts FLOPs of attention rows of every answer token in `layers` layers."""
  heads = config.text.num_attention_heads * config.text.head_dim
  pairs = _answer_pairs(length, answers, count)
  return Work(0, 2 * layers * heads * pairs)


def _sum(works: Iterable[Work]) -> Work:
  return Work(*map(sum, zip(*works, strict=True)))


def forward(*works: Work) -> int:
  """Sums FLOPs of a forward pass."""
  return sum(_sum(works))


def training(
  parts: Mapping[str, Work], trains: Collection[str], *, adapter: bool = False
) -> int:
  """Counts FLOPs of a forward and backward pass.

  The gradient of a product costs as much as the product for its parameters,
  if they train, and as much for its input, if anything before it trains. In a
  part that trains, something does, except in the patch embedding and the head,
  which are one product. Maps have no parameters and two inputs.

  Args:
    parts: of a model, by name.
    trains: the names of those that train.
    adapter: whether only pairs of an adapter train in them. Products with the
      pairs aren't counted: they are a hundredth or less.
  """
  total, reached = 0, False
  for name in PARTS:
    if name in parts:
      own = name in trains
      inside = reached or (own and name not in ("patch_embed", "head"))
      reached = reached or own
      dense, maps = parts[name]
      of_own = own and not adapter
      total += dense * (1 + of_own + inside) + maps * (1 + 2 * inside)
  return total


def step(
  config: ModelConfig,
  *,
  grids: Sequence[Grid],
  lengths: Sequence[int],
  answers: int,
  count: int,
  others: int = 0,
  rows_probed: int = 1,
  rows_trained: int = 0,
  reference: bool = True,
  epochs: int = 1,
  trains: Collection[str] = PARTS,
  adapter: bool = False,
) -> dict[str, int]:
  """Counts FLOPs of a rollout batch and of the updates on it.

  A rollout runs vision and prompts once and decodes the answers, of which the
  last token is drawn and not run. The behaviour probe runs the answers over
  the prompts of the rollout, the reference probe everything. An update runs
  everything forward and backward, but no vision tower that is frozen: its
  tokens are those of the rollout. Measuring each term's share of the gradient
  isn't counted.

  Args:
    config: the model.
    grids: frames, rows and columns of patches of all pictures and videos.
    lengths: tokens of each prompt.
    answers: G.
    count: tokens of an answer.
    others: further answers of a group, which weren't sampled.
    rows_probed: number of layers whose attention rows the behaviour probe
      reads.
    rows_trained: number of layers whose attention rows a loss reads.
    reference: whether there is a reference probe.
    epochs: updates that each prompt takes part in.
    trains: the parts of the model (of `PARTS`) that train.
    adapter: see `training`.

  Returns:
    FLOPs of "rollout", "probe" and "update", the last of all updates.
  """

  sizes = answers + others, count
  seen = vision(config, grids)
  prompts = _sum(prefill(config, s) for s in lengths)
  decoded = _sum(extend(config, s, answers, count - 1) for s in lengths)
  scored = _sum(extend(config, s, *sizes) for s in lengths)
  probed = _sum(rows(config, s, *sizes, rows_probed) for s in lengths)
  trained = _sum(rows(config, s, *sizes, rows_trained) for s in lengths)
  drawn, logits = (
    head(config, len(lengths) * group * count)
    for group in (answers, answers + others)
  )
  probe = forward(scored, logits, probed)
  if reference:
    probe += forward(*seen.values(), prompts, scored, logits)
  parts = {"layers": _sum([prompts, scored, trained]), "head": logits}
  if set(trains) & set(VISION):
    parts |= seen
  return {
    "rollout": forward(*seen.values(), prompts, decoded, drawn),
    "probe": probe,
    "update": epochs * training(parts, trains, adapter=adapter),
  }
