"""Writes transformers_*.npz, what Transformers computes for small models.

    python tests/testdata/make_transformers_goldens.py

Needs torch (the extra `parity`). Weights are drawn by name from a seed
(`small_models.weight`), so the files hold outputs only, and of those only
some rows: logits and attention of every `STEP`-th position.
"""

import importlib.metadata
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from parity import oracle  # noqa: E402
from small_models import golden_cases, make_processor  # noqa: E402

STEP = 6


def main():
  for name, (config, conversations) in golden_cases().items():
    model = oracle.make_torch(config)
    inputs = oracle.make_inputs(make_processor(config), conversations)
    logits, attention = oracle.outputs(model, inputs)
    positions, deltas = oracle.positions(model, inputs)
    path = HERE / f"transformers_{name}.npz"
    np.savez_compressed(
      path,
      transformers=importlib.metadata.version("transformers"),
      config=model.config.to_json_string(),
      tokens=inputs["input_ids"].numpy().astype(np.int16),
      mask=inputs["attention_mask"].numpy().astype(bool),
      positions=positions.astype(np.int16),
      deltas=deltas.astype(np.int16),
      rows=np.arange(logits.shape[1])[::-STEP],
      logits=logits[:, ::-STEP],
      attention=attention[:, :, :, ::-STEP],
      pixel_sum=sum(
        float(inputs[name].double().sum())
        for name in ("pixel_values", "pixel_values_videos")
      ),
    )
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
  main()
