"""Host memory that loading a checkpoint takes. Prints one JSON line.

  python -m experiments.bench.load --gigabytes 2

Writes a random Qwen2.5-VL checkpoint in shards to a temporary folder, loads it
in a process of its own, and compares that process's peak resident memory, less
what it was before, with the parameters that it then holds. On a CPU these are
host memory, too: the rest is what loading took besides. `over_shard` is that
rest over the size of the largest shard; the aim is at most 1.2.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from experiments.bench import random_model
from mmrl.hub import config_json, weights
from mmrl.hub import tensors as tensors_lib
from mmrl.models import parameters
from mmrl.models.config import ModelConfig

_MEGABYTE = 10**6


def make_config(layers: int) -> ModelConfig:
  """The 3B model's shape with fewer layers and a tower of four blocks."""
  config = random_model.architecture(random_model.SMALL, layers)
  tower = dataclasses.replace(
    config.vision, depth=4, fullatt_block_indexes=(3,)
  )
  return dataclasses.replace(config, vision=tower)


def size(config: ModelConfig) -> int:
  """Bytes of the parameters in bfloat16."""
  return 2 * sum(x.size for x in jax.tree.leaves(parameters.shapes(config)))


def write(config: ModelConfig, path: pathlib.Path, shard: int) -> None:
  """Random bfloat16 tensors, `shard` bytes a file."""
  config_json.write(config, path, "bfloat16")
  tensors = tensors_lib.of_model(config)
  files: list[list[str]] = [[]]
  filled = 0
  for name, tensor in tensors.items():
    count = 2 * int(np.prod(tensor.shape))
    if files[-1] and filled + count > shard:
      files.append([])
      filled = 0
    files[-1].append(name)
    filled += count
  index = {}
  for number, names in enumerate(files):
    file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
    index |= dict.fromkeys(names, file)
    rng = np.random.default_rng(number)
    arrays = {
      name: rng.standard_normal(tensors[name].shape, np.float32).astype(
        ml_dtypes.bfloat16
      )
      for name in names
    }
    safetensors.numpy.save_file(arrays, path / file)
  text = json.dumps({"metadata": {}, "weight_map": index})
  (path / tensors_lib.INDEX).write_text(text)


def resident(field: str) -> int:
  """Resident bytes of this process (Linux): VmRSS now, VmHWM at its peak."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split(f"{field}:")[1].split()[0])


def load(path: str) -> None:
  """Loads and prints what it took; runs in a process of its own."""
  config = config_json.read(path)
  jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
  before = resident("VmRSS")
  params = weights.load_params(path, config, dtype="bfloat16")
  jax.block_until_ready(params)
  placed = sum(x.nbytes for x in jax.tree.leaves(params))
  print(json.dumps({"placed": placed, "peak": resident("VmHWM") - before}))


def main() -> None:
  """Writes, loads in a process of its own, prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--gigabytes", type=float, default=2.0)
  parser.add_argument("--shard-megabytes", type=int, default=700)
  parser.add_argument("--load", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.load:
    load(flags.load)
    return
  layers = 1
  while size(make_config(layers)) < flags.gigabytes * 10**9:
    layers += 1
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    write(make_config(layers), path, flags.shard_megabytes * _MEGABYTE)
    shards = [file.stat().st_size for file in path.glob("*.safetensors")]
    out = subprocess.run(
      [sys.executable, "-m", "experiments.bench.load", "--load", folder],
      check=True,
      capture_output=True,
      text=True,
    )
  found = json.loads(out.stdout)
  beside = found["peak"] - found["placed"]
  print(
    json.dumps(
      {
        "checkpoint_gb": round(sum(shards) / 10**9, 2),
        "shards": len(shards),
        "largest_shard_gb": round(max(shards) / 10**9, 2),
        "peak_gb": round(found["peak"] / 10**9, 2),
        "placed_gb": round(found["placed"] / 10**9, 2),
        "over_shard": round(beside / max(shards), 2),
      }
    )
  )


if __name__ == "__main__":
  main()
