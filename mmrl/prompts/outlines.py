"""Pictures of which only the sides are known, for sizes without pixels."""

import numpy as np

from mmrl.models.config import VisionConfig
from mmrl.models.families import Span, sizes
from mmrl.prompts import pictures


def outline(
  sides: tuple[int, int],
  config: pictures.PictureConfig,
  vision: VisionConfig,
  placeholder: str,
) -> pictures.Cut:
  """Cuts a picture of which only the sides are known: patches have no values.

  Raises:
    ValueError: see `pictures.cut`.
  """
  size, shrunk = sizes.fitted(sides, config, vision.cell_size)
  rows, columns = (side // vision.patch_size for side in size)
  grid = (1, rows, columns)
  nowhere = np.zeros(rows * columns // vision.spatial_merge_size**2, np.float32)
  return pictures.Cut(
    kind="image",
    pixels=np.zeros((rows * columns, 0), np.float32),
    grid=grid,
    spans=(Span(placeholder, grid),),
    shrunk=shrunk,
    region=nowhere,
    evidence=nowhere,
  )
