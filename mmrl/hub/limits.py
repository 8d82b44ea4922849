"""What the numbers of a config.json may be.

They are checked as they stand in the file, before anything is computed from
them: a size of a billion would take all memory long before it failed.
"""

from collections.abc import Mapping
import math
from typing import Any

# The largest models that there are have less than a tenth of these.
_LAYERS = (1, 2**10)
_WIDTH = (1, 2**20)
_HEADS = (1, 2**14)
_WHOLE = {
  "vocab_size": (1, 2**26),
  "hidden_size": _WIDTH,
  "intermediate_size": _WIDTH,
  "num_hidden_layers": _LAYERS,
  "num_attention_heads": _HEADS,
  "num_key_value_heads": _HEADS,
  "head_dim": (2, 2**14),
  "max_position_embeddings": (1, 2**31 - 1),
  # Of the tower.
  "depth": _LAYERS,
  "embed_dim": _WIDTH,
  "out_hidden_size": _WIDTH,
  "num_heads": _HEADS,
  "patch_size": (1, 2**10),
  "temporal_patch_size": (1, 2**6),
  "spatial_merge_size": (1, 2**6),
  "in_channels": (1, 2**6),
  "window_size": (1, 2**12),
  "tokens_per_second": (1, 2**10),
  "num_position_embeddings": (1, 2**24),
}
# Excluding the ends.
_REAL = {
  "rope_theta": (0.0, 1e30),
  "rms_norm_eps": (0.0, 1.0),
  "mlp_ratio": (0.0, 1024.0),
}
# Lists: the most entries, and the most that each may be.
_LISTS = {
  "mrope_section": (3, 2**13),
  "fullatt_block_indexes": (2**10, 2**10),
  "deepstack_visual_indexes": (2**10, 2**10),
}


def check(part: Mapping[str, Any]) -> None:
  """Checks the numbers of one part of a config.json.

  Raises:
    TypeError: naming the first field that isn't a number of its kind, or too
      small or large.
  """
  for name, (low, high) in _WHOLE.items():
    value = part.get(name, low)
    if type(value) is not int or not low <= value <= high:
      raise TypeError(
        f"{name} is {value!r:.80}, not a whole number of {low} to {high}"
      )
  grid = part.get("num_position_embeddings", 1)
  if math.isqrt(grid) ** 2 != grid:
    raise TypeError(f"num_position_embeddings is {grid}, not a square number")
  for name, (least, most) in _REAL.items():
    value = part.get(name, most / 2)
    if type(value) not in (int, float) or not least < value < most:
      raise TypeError(
        f"{name} is {value!r:.80}, not a number above {least:g} and below"
        f" {most:g}"
      )
  for name, (count, high) in _LISTS.items():
    values = part.get(name, [])
    if isinstance(values, list) and len(values) > count:
      raise TypeError(f"{name} is {values!r:.80}, more than {count} numbers")
    for value in values if isinstance(values, list) else ():
      if isinstance(value, int) and not 0 <= value <= high:
        raise TypeError(f"{name} is {values!r:.80}, not numbers of 0 to {high}")


def check_shapes(text: Any, tower: Any) -> None:
  """Checks that sizes fit each other.

  Args:
    text: the decoder, a `TextConfig`.
    tower: the vision tower, a `VisionConfig`.

  Raises:
    ValueError: naming the two fields.
  """
  heads, groups = text.num_attention_heads, text.num_key_value_heads
  if heads % groups:
    raise ValueError(
      f"num_attention_heads is {heads}, not a multiple of num_key_value_heads,"
      f" {groups}"
    )
  if tower.hidden_size % tower.num_heads:
    raise ValueError(
      f"the tower's width is {tower.hidden_size}, not a multiple of its"
      f" num_heads, {tower.num_heads}"
    )
  if 0 < tower.window_size < tower.cell_size:
    raise ValueError(
      f"window_size is {tower.window_size}, less than patch_size *"
      f" spatial_merge_size, {tower.cell_size}"
    )
  if tower.head_dim % 4:
    raise ValueError(
      f"the tower's heads have {tower.head_dim} channels (hidden_size /"
      " num_heads), not a multiple of 4"
    )
  deep = tower.deepstack_visual_indexes
  most = min(tower.depth, text.num_hidden_layers)
  if len(set(deep)) < len(deep) or max(deep, default=-1) >= tower.depth:
    raise ValueError(
      f"deepstack_visual_indexes is {deep!s:.80}, not each once of the blocks"
      f" 0 to {tower.depth - 1}"
    )
  if len(deep) > most:
    raise ValueError(
      f"deepstack_visual_indexes has {len(deep)} blocks, more than layers"
      f" ({most})"
    )
