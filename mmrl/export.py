"""python -m mmrl.export --workdir DIR --output DIR

Writes a run's model as a directory for Transformers, vLLM and lmms-eval.

It reads the newest checkpoint, so the run may still be in progress. Trained and
frozen parameters are merged.
"""

import json

from absl import flags
import ml_collections

from mmrl import commands
from mmrl.errors import UserError


def export(
  workdir: str,
  output: str,
  *,
  dtype: str = "",
  max_shard_bytes: int = 5 * 10**9,
) -> int:
  """Writes a run's newest checkpoint as a model directory.

  Args:
    workdir: of the run; not modified.
    output: the directory to write; both may be local or gs://.
    dtype: of the weights; the run's `param_dtype` if empty.
    max_shard_bytes: see `hub.save`.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError: if there is no whole checkpoint, or the model can't be written.
  """
  # Imported late, so that a mistyped flag is answered at once.
  import jax

  from mmrl import hub, storage
  from mmrl.hub import config_json
  from mmrl.hub import directory as model_lib
  from mmrl.models import parameters
  from mmrl.prompts.processor import Processor
  from mmrl.workdir import checkpoint

  path = storage.path(workdir)
  try:
    config = ml_collections.ConfigDict(
      json.loads(storage.read_text(path / "config.json"))
    )
  except (OSError, ValueError) as error:
    raise UserError(
      f"expected the --workdir of a run, found {workdir}: {error}"
    ) from error
  source = model_lib.find(config.models.policy.path)
  model_config = config_json.read(source)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, config.models.policy.param_dtype, sharding=here
    ),
    parameters.shapes(model_config),
  )
  # Checkpoints store trained and frozen parameters apart.
  parts = parameters.partition(shapes, tuple(config.frozen))
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  params = checkpoints.restore_params(*parts)
  if dtype:
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  processor = Processor.load(source, model_config)
  hub.save(
    hub.Model(model_config, params, processor),
    output,
    max_shard_bytes=max_shard_bytes,
  )
  assert checkpoints.restored is not None
  return checkpoints.restored


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string("output", None, "Directory to write.")
  flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights."
  )
  flags.DEFINE_integer(
    "max_shard_bytes",
    5 * 10**9,
    "Size above which weights are split up.",
    lower_bound=1,
  )


def main() -> None:
  given = flags.FLAGS
  workdir, output = given.workdir, given.output
  step = export(
    workdir,
    output,
    dtype=given.dtype,
    max_shard_bytes=given.max_shard_bytes,
  )
  print(f"wrote step {step} of {workdir} to {output}")


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("workdir", "output"))
