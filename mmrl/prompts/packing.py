"""Conversations to a padded batch, their pictures packed into rows.

A conversation that fits no bucket is refused by name; an image span is never
cut.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from mmrl.errors import UserError
from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.prompts import pictures
from mmrl.types import Patches, Prompt

# Buckets when none are given: multiples of these.
_TOKENS_STEP, _PATCHES_STEP = 32, 64


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One conversation, not padded yet.

  Attributes:
    name: what errors call it.
    tokens: [S] ids.
    positions: [S, 3] rotary positions.
    visual_index: [S] visual token at each position, -1 for text.
    region: [S] share of the token's cell that the marked region covers.
    evidence: [S] where the middle of the region is.
    cuts: its pictures and videos.
  """

  name: str
  tokens: np.ndarray
  positions: np.ndarray
  visual_index: np.ndarray
  region: np.ndarray
  evidence: np.ndarray
  cuts: tuple[pictures.Cut, ...]

  @property
  def shrunk(self) -> int:
    """Number of pictures and videos that the pixel budget made smaller."""
    return sum(cut.shrunk for cut in self.cuts)


def collate(
  encoded: Sequence[Encoded],
  config: ModelConfig,
  *,
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
  rows: int = 1,
) -> Prompt:
  """Pads conversations to one batch and packs their pictures into rows.

  Args:
    encoded: the conversations.
    config: of the model.
    lengths: allowed S; multiples of 32 if empty.
    patches: allowed M per prompt of a row, on average; multiples of 64 if
      empty.
    rows: B, rows that the pictures are packed into.

  Returns:
    NumPy arrays, padded on the left to the smallest buckets that fit.

  Raises:
    UserError: naming the conversation that fits no bucket.
    ValueError: if `rows` doesn't divide the conversations.
  """
  if len(encoded) % rows:
    raise ValueError(f"{len(encoded)} prompts don't divide into {rows} rows")
  length = _bucket(
    {e.name: len(e.tokens) for e in encoded}, lengths, _TOKENS_STEP, "tokens"
  )

  def pad(arrays, fill):
    shape = (len(arrays), length, *arrays[0].shape[1:])
    out = np.full(shape, fill, arrays[0].dtype)
    for i, array in enumerate(arrays):
      out[i, length - len(array) :] = array
    return out

  group = len(encoded) // rows
  packed = [encoded[i : i + group] for i in range(0, len(encoded), group)]
  return Prompt(
    tokens=pad([e.tokens for e in encoded], config.pad_token_id),
    mask=pad([np.ones(len(e.tokens), bool) for e in encoded], False),
    positions=pad([e.positions for e in encoded], 0),
    visual_index=pad([i for row in packed for i in _row_index(row)], -1),
    next_position=np.array(
      [e.positions[-1].max() + 1 for e in encoded], np.int32
    ),
    region=pad([e.region for e in encoded], 0),
    evidence=pad([e.evidence for e in encoded], 0),
    patches=_pack(packed, config.vision, patches),
  )


def _pack(
  packed: Sequence[Sequence[Encoded]],
  tower: VisionConfig,
  buckets: Sequence[int],
) -> Patches:
  """Packs the pictures of each row of conversations, one after the other."""
  group, per_window = len(packed[0]), tower.window_patches
  # An error names the conversation of a row that has the most patches.
  count = _bucket(
    {
      e.name: -(-sum(room(e, tower) for e in row) // group)
      for row in packed
      for e in [max(row, key=lambda e: sum(len(c.pixels) for c in e.cuts))]
    },
    buckets,
    _PATCHES_STEP,
    "patches" if group == 1 else f"patches a prompt, {group} packed together",
  )
  shape = (len(packed), count * group)
  windows = slots = None
  if per_window:
    # Windows at the edges are cut, so a row has room for twice as many.
    windows = np.full(
      (len(packed), 2 * -(-shape[1] // per_window), per_window), -1, np.int32
    )
    slots = np.zeros(shape, np.int32)
  out = Patches(
    pixels=np.zeros((*shape, tower.patch_values), np.float32),
    rows_columns=np.zeros((*shape, 2), np.int32),
    extent=np.ones((*shape, 2), np.int32),
    frame=np.zeros((*shape, 2), np.int32),
    windows=windows,
    window_slot=slots,
  )
  for row, conversations in enumerate(packed):
    start = window = 0
    for cut in (c for e in conversations for c in e.cuts):
      span = slice(start, start + len(cut.pixels))
      size = cut.grid[1] * cut.grid[2]
      first = start + np.arange(len(cut.pixels)) // size * size
      out.pixels[row, span] = cut.pixels
      out.rows_columns[row, span] = pictures.merge_order(
        cut.grid, tower.spatial_merge_size
      )
      out.extent[row, span] = cut.grid[1:]
      out.frame[row, span] = np.stack([first, first + size], axis=-1)
      if windows is not None and slots is not None:
        for members in pictures.window_lists(cut.grid, tower):
          members = members + start
          windows[row, window, : len(members)] = members
          places = window * per_window + np.arange(len(members))
          slots[row, members] = places
          window += 1
      start = span.stop
  return out


def room(encoded: Encoded, tower: VisionConfig) -> int:
  """Counts the patches that a conversation's pictures take up in their row."""
  return sum(_room(cut, tower) for cut in encoded.cuts)


def _room(cut: pictures.Cut, tower: VisionConfig) -> int:
  """Counts the patches that a picture takes up in its row.

  Windows at the right and lower edge are cut off, so there are more of them
  than patches / patches of a window. A row has room for twice as many;
  pictures so thin that they need more count as more patches.
  """
  if not tower.window_size:
    return len(cut.pixels)
  windows = len(pictures.window_lists(cut.grid, tower))
  return max(len(cut.pixels), windows * tower.window_patches // 2)


def _row_index(row: Sequence[Encoded]) -> Iterator[np.ndarray]:
  """Yields visual indices that continue through the conversations of a row."""
  seen = 0
  for e in row:
    yield np.where(e.visual_index >= 0, e.visual_index + seen, -1).astype(
      np.int32
    )
    seen += int((e.visual_index >= 0).sum())


def _bucket(
  sizes: dict[str, int], buckets: Sequence[int], step: int, what: str
) -> int:
  """Returns the smallest bucket that holds every size, or raises naming one."""
  name = max(sizes, key=sizes.__getitem__)
  need = sizes[name]
  if not buckets:
    return max(step, -(-need // step) * step)
  fitting = [bucket for bucket in sorted(buckets) if bucket >= need]
  if not fitting:
    raise UserError(
      f"{name}: expected at most {max(buckets)} {what}, found {need}; add a"
      f" larger bucket, shrink the pictures (max_pixels) or shorten the text"
    )
  return fitting[0]
