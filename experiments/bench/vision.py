"""What a mixed batch of pictures costs the vision tower. Prints JSON lines.

  python -m experiments.bench.vision

One large picture and many tiny ones go through the shipped model's tower:
packed into one row, and in a row of its own each, padded to the largest.
Medians of five runs in turn; temporary memory is XLA's own figure.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import numpy as np

from mmrl import hub, models


def main() -> None:
  """Compiles and runs both forms."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--large", type=int, default=512, help="its side, pixels")
  parser.add_argument("--tiny", type=int, default=64, help="their side, pixels")
  parser.add_argument("--pictures", type=int, default=16)
  flags = parser.parse_args()
  model = hub.load("tiny")
  picture = dataclasses.replace(
    model.processor.picture, max_pixels=flags.large**2
  )
  processor = dataclasses.replace(model.processor, picture=picture)
  rng = np.random.RandomState(0)
  sides = [flags.large] + [flags.tiny] * (flags.pictures - 1)
  encoded = []
  for side in sides:
    pixels = rng.randint(0, 256, (side, side, 3), np.uint8)
    part = {"type": "image", "image": pixels}
    message = {"role": "user", "content": [part]}
    encoded.append(processor.encode([message], f"{side} px"))
  tower = jax.jit(models.vision, static_argnums=1)
  forms = {}
  for name, rows in (("packed", 1), ("padded", len(sides))):
    patches = jax.device_put(processor.collate(encoded, rows=rows).patches)
    compiled = tower.lower(model.params, model.config, patches).compile()
    jax.block_until_ready(compiled(model.params, patches))
    forms[name] = compiled, patches
  times = {name: [] for name in forms}
  for _ in range(5):
    for name, (compiled, patches) in forms.items():
      began = time.perf_counter()
      jax.block_until_ready(compiled(model.params, patches))
      times[name].append(time.perf_counter() - began)
  real = sum(len(cut.pixels) for e in encoded for cut in e.cuts)
  for name, (compiled, patches) in forms.items():
    memory = compiled.memory_analysis()
    print(
      json.dumps(
        {
          "form": name,
          "pictures": len(sides),
          "patches": real,
          "padded_patches": int(np.prod(patches.pixels.shape[:2])),
          "seconds": round(statistics.median(times[name]), 3),
          "temporary_mb": round(memory.temp_size_in_bytes / 10**6, 1),
        }
      )
    )


if __name__ == "__main__":
  main()
