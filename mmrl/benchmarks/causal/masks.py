"""Masks of the objects that are replaced in real pictures.

Reference: mask_dilation.py and Intervention_objects_selection.py of
Causal-HalBench, arXiv 2511.10268.
"""

from jaxtyping import Bool, UInt8
import numpy as np

# Iterations for the picture that a model sees to choose, and for inpainting;
# opacity of the tint.
TINTED, INPAINTED, _ALPHA = 4, 10, 80 / 255


def dilate(
  mask: Bool[np.ndarray, "h w"], side: int = 5, iterations: int = INPAINTED
) -> Bool[np.ndarray, "h w"]:
  """Grows a mask by a square.

  Args:
    mask: of the object.
    side: of the square, pixels, odd.
    iterations: how often.
  """
  # Squares add up: one of the whole reach does the same as all, and along one
  # axis at a time.
  reach = side // 2 * iterations
  found = np.asarray(mask, bool)
  for axis in (0, 1):
    sums = np.cumsum(found, axis, dtype=np.int64)
    sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
    size = found.shape[axis]
    high = np.minimum(np.arange(size) + reach + 1, size)
    low = np.maximum(np.arange(size) - reach, 0)
    found = sums.take(high, axis) > sums.take(low, axis)
  return found


def to_fill(
  target: Bool[np.ndarray, "h w"], context: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
  """Returns what is painted anew: around the target, without what stays."""
  return dilate(target) & ~np.asarray(context, bool)


def tint(
  picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints a mask, dilated, in red: what a model is asked to replace."""
  red = np.array([255, 0, 0])
  mixed = (1 - _ALPHA) * picture.astype(float) + _ALPHA * red
  inside = dilate(mask, iterations=TINTED)[..., None]
  return np.where(inside, mixed.round(), picture).astype(np.uint8)
