"""The model of a run as a directory for Transformers, vLLM and lmms-eval.

The newest checkpoint is taken, so a run may still be going on: parameters
that were trained are put together with those that were frozen.
"""

import json
import pathlib

import jax
import ml_collections

from mmrl import models
from mmrl.errors import UserError
from mmrl.models import checkpoint as model_lib
from mmrl.models import config_json, parameters
from mmrl.models.processor import Processor
from mmrl.train import checkpoint, optimizer


def export(
  workdir: str,
  output: str,
  *,
  dtype: str = "",
  max_shard_bytes: int = 5 * 10**9,
) -> int:
  """Writes a run's newest checkpoint as a model directory.

  Args:
    workdir: of the run.
    output: the directory to write.
    dtype: of the weights; as the run holds them if empty.
    max_shard_bytes: see `models.save`.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError: if there is no checkpoint, or it can't be written.
  """
  path = pathlib.Path(workdir)
  try:
    config = ml_collections.ConfigDict(
      json.loads((path / "config.json").read_text())
    )
  except (OSError, ValueError) as error:
    raise UserError(
      f"expected the --workdir of a run, found {workdir}: {error}"
    ) from error
  source = model_lib.find(config.model.path)
  model_config = config_json.read(source)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, config.model.param_dtype, sharding=here
    ),
    parameters.shapes(model_config),
  )
  parts = optimizer.partition(shapes, tuple(config.frozen))
  checkpoints = checkpoint.Checkpoints(path, keep=config.checkpoint.keep)
  try:
    step = checkpoints.latest
    if step is None:
      raise UserError(
        f"expected a checkpoint in {workdir}, found none; let python -m"
        " mmrl.train reach its first one"
      )
    params = checkpoints.restore_params(*parts)
  finally:
    checkpoints.close()
  if dtype:
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  processor = Processor.load(source, model_config)
  try:
    models.save(
      models.Model(model_config, params, processor),
      output,
      max_shard_bytes=max_shard_bytes,
    )
  except OSError as error:
    raise UserError(
      f"expected to write a model to {output}: {error}"
    ) from error
  return step
