"""A small diffusion model of shapes: mask, colour and texture in, picture out.

  python -m mmrl.diffusion.train --config experiments/diffusion/shapes.py \\
    --workdir runs/shapes
  python -m mmrl.diffusion.sample --model runs/shapes/model --output grid.png

What HGC (arXiv 2511.11031) is shown on: a U-Net of two levels with a control
branch, pictures of 16 x 16 pixels, guidance by leaving out one prompt in ten.
"""

from mmrl.diffusion import config as config_lib


def get_config():
  """The config; its fields are those of `mmrl.diffusion.config`."""
  return config_lib.get_config()
