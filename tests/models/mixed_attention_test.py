"""LaVer's mask and positions against the values of its equations."""

import jax.numpy as jnp
import numpy as np
import small_models

from mmrl.models import tower
from mmrl.models.families import Span
from mmrl.prompts import pictures
from mmrl.types import Patches, Prompt

# Text, a picture of two tokens, text, a picture of one, padding.
VISUAL = np.array([-1, 0, 1, -1, 2, -1])
MASK = np.array([1, 1, 1, 1, 1, 0], bool)


def seen(frames) -> list[str]:
  """Which positions each sees, by the frame of each visual token."""
  config = small_models.small_config()
  cells = config.vision.spatial_merge_size**2
  frame = np.repeat(np.array(frames), cells, axis=0)[None]
  empty = jnp.zeros((1, frame.shape[1], 2), jnp.int32)
  patches = Patches(
    pixels=jnp.zeros((1, frame.shape[1], 1)),
    rows_columns=empty,
    extent=empty,
    frame=jnp.asarray(frame),
    windows=None,
    window_slot=None,
  )
  prompt = Prompt(
    tokens=jnp.zeros((1, 6), jnp.int32),
    mask=jnp.asarray(MASK[None]),
    positions=jnp.zeros((1, 6, 3), jnp.int32),
    visual_index=jnp.asarray(VISUAL[None]),
    next_position=jnp.zeros(1, jnp.int32),
    region=jnp.zeros((1, 6)),
    patches=patches,
    evidence=jnp.zeros((1, 6)),
  )
  (rows,) = np.asarray(tower.mixed_mask(config, prompt))
  return ["".join(map(str, row)) for row in rows[MASK].astype(int)]


def test_pictures_see_themselves_both_ways():
  one, other = (0, 8), (8, 12)
  assert seen([one, one, other]) == [
    *("100000", "111000", "111000", "111100", "111110"),
  ]
  # As one picture, before and after the text.
  assert seen([one, one, one]) == [
    *("100000", "111010", "111010", "111100", "111110"),
  ]


def test_positions_of_pictures_and_text():
  """The next text is one past the largest of a picture's."""
  processor = small_models.make_processor(small_models.small_config())
  config = processor.config
  merge, picture = config.vision.spatial_merge_size, config.image_token_id

  def laid(*parts):
    """A part is a number of words, or rows and columns of visual tokens."""
    ids, cuts = [], []
    for part in parts:
      if isinstance(part, int):
        ids += part * [5]
        continue
      ids.append(picture)
      grid = (1, part[0] * merge, part[1] * merge)
      nowhere = np.zeros(part[0] * part[1], np.float32)
      cuts.append(
        pictures.Cut(
          kind="image",
          pixels=np.zeros((grid[1] * grid[2], 0), np.float32),
          grid=grid,
          spans=(Span("x", grid),),
          shrunk=False,
          region=nowhere,
          evidence=nowhere,
        )
      )
    found = processor._place(np.array(ids), tuple(cuts), "one")
    return [tuple(map(int, row)) for row in found.positions[:, 1:]]

  assert laid(2, (4, 3), 4) == [
    *((0, 0), (1, 1)),
    *((row, column) for row in (2, 3, 4, 5) for column in (2, 3, 4)),
    *((6, 6), (7, 7), (8, 8), (9, 9)),
  ]
  assert laid((1, 2), (2, 1), 1) == [(0, 0), (0, 1), (2, 2), (3, 2), (4, 4)]
