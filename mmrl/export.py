"""python -m mmrl.export --workdir DIR --output DIR

Writes a run's model as a directory for Transformers, vLLM and lmms-eval, or
with --push USER/NAME to the Hugging Face hub, with a model card.

It reads the newest checkpoint, or with --best the best one, so the run may
still be in progress. Trained and frozen parameters are merged, and so is a LoRA
adapter, which --adapter writes alone, for PEFT and vLLM.
"""

import tempfile
from typing import Any

from absl import flags
import ml_collections

from mmrl import commands
from mmrl.errors import UserError, tell


def export(
  workdir: str,
  output: str,
  *,
  dtype: str = "",
  max_shard_bytes: int = 5 * 10**9,
  adapter: bool = False,
  best: bool = False,
) -> int:
  """Writes a run's newest checkpoint as a model directory.

  Args:
    workdir: of the run; not modified.
    output: the directory to write; both may be local or gs://.
    dtype: of the weights; the run's `param_dtype` if empty.
    max_shard_bytes: see `hub.save`.
    adapter: write the adapter alone, in PEFT's format and float32, instead of
      the model that it is merged into.
    best: take the best checkpoint, by `config.checkpoint.best`.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError: if there is no whole checkpoint, or the model can't be written.
  """
  # Imported late, so that a mistyped flag is answered at once.
  import jax

  from mmrl import hub
  from mmrl.hub import adapters, config_json
  from mmrl.hub import directory as model_lib
  from mmrl.models import parameters
  from mmrl.prompts.processor import Processor
  from mmrl.train import models as models_lib
  from mmrl.workdir import checkpoint, claim

  if adapter and dtype:
    raise UserError(
      "expected --adapter, which is written in float32, without --dtype, found"
      f" --dtype={dtype}; leave one of them out"
    )
  config = claim.config_of(workdir)
  if best and not config.checkpoint.get("best"):
    raise UserError(
      "expected a run whose config.checkpoint.best names a number, found none"
      f" in {workdir}; leave out --best to have the newest checkpoint"
    )
  source = model_lib.find(config.models.policy.path)
  model_config = models_lib.compute_as(config, config_json.read(source))
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  step = checkpoints.find_best().step if best else None
  params = _restore(config, model_config, source, checkpoints, step)
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


def push(
  workdir: str,
  repository: str,
  *,
  private: bool = False,
  best: bool = False,
  adapter: bool = False,
  **options,
) -> tuple[int, str]:
  """Pushes a run's checkpoint to the Hugging Face hub, with a model card.

  Args:
    workdir: of the run; not modified.
    repository: USER/NAME; made if it isn't there.
    private: whether it is then private.
    best, adapter, **options: see `export`.

  Returns:
    (the step of the checkpoint, the address of the repository).

  Raises:
    UserError: see `export` and `publish.push`.
  """
  from mmrl import storage
  from mmrl.hub import publish
  from mmrl.workdir import claim

  config = claim.config_of(workdir)
  policy = config.models.policy.path
  is_local = policy == "tiny" or storage.is_dir(policy)
  base = "" if is_local else policy.partition("@")[0]
  if adapter and not base:
    tell(
      f"warning: {repository} names its base model as {policy}, which others"
      " don't have; push that model, too"
    )
  # Before what takes long.
  publish.check_ready(repository, private=private)
  with tempfile.TemporaryDirectory(prefix="mmrl-") as folder:
    step = export(workdir, folder, best=best, adapter=adapter, **options)
    card = publish.Card(
      step=step,
      best=config.checkpoint.best if best else "",
      config=config.to_dict(),
      base=base,
      numbers=_numbers(workdir, config, step),
      adapter=adapter,
    )
    return step, publish.push(folder, repository, card, private=private)


def _numbers(
  workdir: str, config: ml_collections.ConfigDict, step: int
) -> dict[str, tuple[float, float | None]]:
  """Reads what benchmarks gave before training, and at a step."""
  from mmrl import storage
  from mmrl.benchmarks import results
  from mmrl.workdir import log

  folder = storage.path(workdir)
  before, after = folder / "before.json", folder / "after.json"
  if not before.exists():
    return {}
  at = {}
  if step == config.train.steps and after.exists():
    at = results.flat(results.load(after))
  else:
    for row in log.read(folder):
      at = row if row["step"] == step else at
  return {
    name: (value, at.get(name))
    for name, value in results.flat(results.load(before)).items()
  }


def _restore(
  config: ml_collections.ConfigDict, model, source, checkpoints, step
):
  """Merges what a checkpoint holds with what was frozen.

  Frozen parameters are read from where the run had them. The newest checkpoint
  is taken if `step` is None.
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
  return checkpoints.restore_params(trainable, frozen, step)


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string("output", None, "Directory to write.")
  flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights."
  )
  flags.DEFINE_bool(
    "adapter", False, "Write the LoRA adapter alone, in PEFT's format."
  )
  flags.DEFINE_bool(
    "best", False, "Take the best checkpoint, by config.checkpoint.best."
  )
  flags.DEFINE_string(
    "push", None, "USER/NAME on the Hugging Face hub, instead of --output."
  )
  flags.DEFINE_bool(
    "private", False, "Let the repository that --push makes be private."
  )
  flags.DEFINE_integer(
    "max_shard_bytes",
    5 * 10**9,
    "Size above which weights are split up.",
    lower_bound=1,
  )


def main() -> None:
  from mmrl.hub import publish

  given = flags.FLAGS
  if (given.output is None) == (given.push is None):
    found = "none" if given.output is None else "both"
    raise UserError(f"expected --output or --push, found {found}; see --help")
  if given.private and given.push is None:
    raise UserError(
      "expected --push beside --private, found --output; a folder has no such"
      " setting"
    )
  options: dict[str, Any] = {
    name: given[name].value
    for name in ("dtype", "max_shard_bytes", "adapter", "best")
  }
  if given.push is None:
    place = given.output
    step = export(given.workdir, place, **options)
  else:
    publish.check_name(given.push)
    step, place = push(
      given.workdir, given.push, private=given.private, **options
    )
  which = "the best step, " if given.best else "step "
  print(f"wrote {which}{step} of {given.workdir} to {place}")
  warning = _caveat(given.workdir)
  if warning:
    tell(f"warning: {warning}")


def _caveat(workdir: str) -> str:
  """Says what other programs do wrong with a run's model."""
  from mmrl.hub import config_json, directory
  from mmrl.train import models as models_lib

  config = _config(workdir)
  found = config_json.read(directory.find(config.models.policy.path))
  return config_json.caveat(models_lib.compute_as(config, found))


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("workdir",))
