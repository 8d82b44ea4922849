"""python -m mmrl.export --workdir DIR --output DIR

Writes a run's model as a directory for Transformers, vLLM and lmms-eval.

It reads the newest checkpoint, so the run may still be in progress. Trained and
frozen parameters are merged, and so is a LoRA adapter, which --adapter writes
alone, for PEFT and vLLM.
"""

import json
from typing import Any

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
  adapter: bool = False,
) -> int:
  """Writes a run's newest checkpoint as a model directory.

  Args:
    workdir: of the run; not modified.
    output: the directory to write; both may be local or gs://.
    dtype: of the weights; the run's `param_dtype` if empty.
    max_shard_bytes: see `hub.save`.
    adapter: write the adapter alone, in PEFT's format and float32, instead of
      the model that it is merged into.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError: if there is no whole checkpoint, or the model can't be written.
  """
  # Imported late, so that a mistyped flag is answered at once.
  import jax

  from mmrl import hub, storage
  from mmrl.hub import adapters, config_json
  from mmrl.hub import directory as model_lib
  from mmrl.models import parameters
  from mmrl.prompts.processor import Processor
  from mmrl.train import models as models_lib
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
  model_config = models_lib.compute_as(config, config_json.read(source))
  checkpoints = checkpoint.Checkpoints(path, read_only=True)
  params = _restore(config, model_config, source, checkpoints)
  assert checkpoints.restored is not None
  if adapter:
    adapters.save(
      parameters.flat(params),
      model_config,
      output,
      model_lib.published_name(config.models.policy.path),
    )
    return checkpoints.restored
  if dtype:
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  processor = Processor.load(source, model_config)
  hub.save(
    hub.Model(model_config, params, processor),
    output,
    max_shard_bytes=max_shard_bytes,
  )
  return checkpoints.restored


def _restore(config: ml_collections.ConfigDict, model, source, checkpoints):
  """Merges what the newest checkpoint holds with what was frozen.

  Frozen parameters are read from where the run had them.
  """
  import jax

  from mmrl.hub import weights
  from mmrl.machines import sharding
  from mmrl.models import parameters
  from mmrl.train import models as models_lib
  from mmrl.train import walk

  dtype = config.models.policy.param_dtype
  layout = sharding.on_one(jax.devices()[0])
  shapes = walk.parameter_shapes(model, layout, dtype)
  trainable, frozen = parameters.partition(shapes, tuple(config.frozen))
  stays: dict[str, Any] = {}
  if model.lora:
    stays |= models_lib.load_adapter(config, model)
  base = [path for path in frozen if not parameters.is_of_adapter(path)]
  if base:
    stays |= parameters.flat(
      weights.load_params(source, model, dtype=dtype, paths=base)
    )
  frozen = {path: stays[path] for path in frozen}
  return checkpoints.restore_params(trainable, frozen)


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string("output", None, "Directory to write.")
  flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights."
  )
  flags.DEFINE_bool(
    "adapter", False, "Write the LoRA adapter alone, in PEFT's format."
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
    adapter=given.adapter,
  )
  print(f"wrote step {step} of {workdir} to {output}")


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("workdir", "output"))
