"""The model of a run as a directory for Transformers, vLLM and lmms-eval.

The newest checkpoint is taken, so a run may still be going on: parameters
that were trained are put together with those that were frozen.
"""

import json

import jax
import ml_collections

from mmrl import models, storage
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
    workdir: of the run; left as it is.
    output: the directory to write; both may be local or gs://.
    dtype: of the weights; as the run holds them if empty.
    max_shard_bytes: see `models.save`.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError: if there is no whole checkpoint, or the model can't be written.
  """
  path = storage.path(workdir)
  try:
    config = ml_collections.ConfigDict(
      json.loads(storage.read_text(path / "config.json"))
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
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  params = checkpoints.restore_params(*parts)
  if dtype:
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  processor = Processor.load(source, model_config)
  models.save(
    models.Model(model_config, params, processor),
    output,
    max_shard_bytes=max_shard_bytes,
  )
  assert checkpoints.restored is not None
  return checkpoints.restored
