"""Report of a run's programs, compiled for a topology: whether they fit."""

from collections.abc import Iterator
import copy
import dataclasses
import json
import sys
from typing import Any

import jax
import ml_collections

from mmrl import data
from mmrl.config import check_fields
from mmrl.errors import UserError
from mmrl.hub import directory
from mmrl.machines import batches, sharding
from mmrl.models import parameters
from mmrl.plan import apart, chips
from mmrl.plan.figures import Program
from mmrl.plan.programs import Compiler, shard_bytes
from mmrl.prompts.processor import Processor
from mmrl.train import models as models_lib

_GIB = 2**30
# Questions that padding is measured on.
_SAMPLE = 64


def run(
  config: ml_collections.ConfigDict, *, topology: str | None, as_json: bool
) -> bool:
  """Prints memory, FLOPs and collectives of each program of a run.

  Nothing runs and nothing is allocated; neither weights nor data are needed.

  Args:
    config: see `mmrl.config`.
    topology: see `chips.topology`; this machine's devices if None.
    as_json: print one JSON object instead of a table.

  Returns:
    Whether everything fits. Where the memory of a device isn't known, it does.

  Raises:
    UserError: naming the field of the config or the flag that is wrong.
  """
  check_fields(config)
  devices = chips.topology(topology) if topology else jax.devices()
  compiler = Compiler(config, devices)
  if not as_json:
    print(_title(compiler, topology))
  found = []
  for program in _programs(compiler, topology):
    found.append(program)
    if not as_json:
      print(_row(program), flush=True)
  fits = all(program.fits for program in found)
  change = None if fits else _remedy(config, devices, topology)
  if as_json:
    print(json.dumps(_summary(compiler, topology, found, fits, change)))
  else:
    for line in _closing(compiler, found, change):
      print(line)
  return fits


def _programs(compiler: Compiler, topology: str | None) -> Iterator[Program]:
  """Compiles the programs: for a topology, as far as their figures need."""
  if topology is None:
    return compiler.programs()
  return apart.programs(compiler.config, topology)


def _sizes(compiler: Compiler) -> dict[str, int | float | None]:
  config, layout = compiler.config, compiler.parts.layout
  prompts, answers = config.rollout.prompts, config.rollout.answers
  group = compiler.answers
  length, new = max(config.data.lengths), config.rollout.length
  return {
    "devices": layout.mesh.devices.size,
    **layout.mesh.shape,
    "prompts": prompts,
    "answers": answers,
    "other_answers": group - answers,
    "prompt_length": length,
    "answer_length": new,
    "patches": max(config.data.patches),
    "tokens_per_step": prompts * (length + group * new),
    "padding_share": _padding(compiler),
    "prompts_per_shard_and_update": prompts
    // (layout.shards * config.train.minibatches * config.train.accumulate),
  }


def _trained(compiler: Compiler) -> dict[str, int]:
  """Counts parameters, and bytes that they take on each device.

  `parameters_trained` counts those that terms add, too. `others_bytes` are of
  averages of the policy, and of the models that don't change.
  """
  state = compiler.state
  parts = {
    "parameters": (state.trainable, state.frozen),
    "optimizer": state.optimizer,
    "others": (state.averages, compiler.fixed),
  }
  held = {f"{k}_bytes": sum(shard_bytes(v).values()) for k, v in parts.items()}
  trained = sum(x.size for x in state.trainable.values())
  frozen = sum(x.size for x in state.frozen.values())
  counts = {"parameters": trained + frozen, "parameters_trained": trained}
  return counts | held


def _trained_line(compiler: Compiler) -> str:
  """Says what trains, and what that and the rest take."""
  found, lora = _trained(compiler), compiler.parts.model_config.lora
  kind = ""
  if lora:
    layers = len(parameters.adapted_layers(compiler.parts.model_config))
    kind = f" by LoRA of rank {lora.rank} on {layers} kinds of layers"
  gib = {
    part: f"{found[f'{part}_bytes'] / _GIB:.2f}"
    for part in ("parameters", "optimizer", "others")
  }
  return (
    f"{found['parameters_trained'] / 1e6:,.1f} of"
    f" {found['parameters'] / 1e6:,.1f} M parameters train{kind}; GiB a device:"
    f" parameters {gib['parameters']}, optimizer {gib['optimizer']}, other"
    f" models {gib['others']}"
  )


def _padding(compiler: Compiler) -> float | None:
  """Measures the share of padding in prompts' tokens on a sample of questions.

  Returns None where the model's tokenizer or the questions can't be read here.
  """
  config = compiler.config
  try:
    policy = config.models.policy.path
    if directory.public_config(policy):
      return None
    processor = Processor.load(
      directory.find(policy), compiler.parts.model_config
    )
    processor = models_lib.with_budget(config, processor)
    source = data.sources.make(config.data.train.to_dict(), "")
    chosen = [source[i] for i in data.spread(len(source), _SAMPLE)]
    lengths = [len(processor.encode(e.messages, e.name).tokens) for e in chosen]
  except UserError:
    return None
  buckets = sorted(config.data.lengths)
  if max(lengths) > buckets[-1]:
    raise UserError(
      f"config.data.lengths: expected at least {max(lengths)} tokens, which a"
      f" question has, found {buckets[-1]}; add a larger bucket"
    )
  padded = [min(b for b in buckets if b >= n) for n in lengths]
  return 1 - sum(lengths) / sum(padded)


def _title(compiler: Compiler, topology: str | None) -> str:
  chip = compiler.chip
  sizes = " ".join(
    f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}"
    for k, v in _sizes(compiler).items()
    if v is not None
  )
  device = compiler.parts.layout.mesh.devices.flat[0].device_kind
  models = compiler.config.models.to_dict()
  others = [
    f"{name} {spec['path']}"
    for name, spec in models.items()
    if name != "policy" and "path" in spec
  ]
  beside = f" beside {', '.join(others)}" if others else ""
  room = f", {chip.memory / _GIB:.1f} GiB a device" if chip else ""
  return (
    f"{models['policy']['path']}{beside} on {topology or 'this machine'}"
    f" ({device}{room})\n{sizes}\n{_trained_line(compiler)}\n\n"
    f"{'program':10}{'memory':>10}{'args':>8}{'temp':>8}{'out':>8}{'other':>8}"
    f"{'':8}{'TFLOP':>10}{'at peak':>10}{'compiled':>10}  collectives"
  )


def _row(program: Program) -> str:
  memory = program.memory

  def gib(name):
    return f"{memory[name] / _GIB:8.2f}" if name in memory else f"{'?':>8}"

  peak = f"{program.seconds:8.2f} s" if program.seconds is not None else "-"
  moved = ", ".join(
    f"{one['count']} {kind} {one['bytes'] / 1e9:.2f} GB"
    for kind, one in (program.collectives or {}).items()
  )
  nothing = "?" if program.collectives is None else "-"
  return (
    f"{program.name:10}{program.total / _GIB:10.2f}"
    f"{gib('arguments')}{gib('temporaries')}{gib('output')}{gib('resident')}"
    f"{'' if program.fits else '  > chip':8}{program.flops / 1e12:10.1f}"
    f"{peak:>10}{program.compile_seconds:8.0f} s  {moved or nothing}"
  )


def _summary(compiler, topology, found, fits, change) -> dict:
  chip = compiler.chip
  return {
    "topology": topology,
    "fits": fits,
    "chip_memory": chip.memory if chip else None,
    "sizes": _sizes(compiler),
    "trained": _trained(compiler),
    "programs": [dataclasses.asdict(program) for program in found],
    "change": change,
  }


def _closing(compiler, found, change) -> Iterator[str]:
  yield "\nmemory in GiB on each device; bytes moved are those of one device"
  if asked := " and ".join(compiler.parts.asked):
    yield f"not counted: what {asked} reads"
  if not compiler.chip:
    yield "this device's memory isn't known: nothing was checked against it"
    return
  worst = max(found, key=lambda program: program.total)
  if worst.fits:
    share = worst.total / compiler.chip.memory
    yield f"fits: {worst.name} takes most, {share:.0%} of a device"
    return
  yield (
    f"does not fit: {worst.name} takes {worst.total / _GIB:.1f} of"
    f" {compiler.chip.memory / _GIB:.1f} GiB; "
    + (f"it does with {change}" if change else "no single change here would")
  )


def _changes(config: ml_collections.ConfigDict, devices: int):
  """Yields single changes that save memory, the cheapest first."""
  if not config.models.policy.remat:
    yield {"models.policy.remat": True}
  accumulate = config.train.accumulate
  for factor in (2, 4, 8):
    yield {"train.accumulate": accumulate * factor}
  mesh = {"mesh.data": 1, "mesh.fsdp": devices, "mesh.tensor": 1}
  if config.mesh.fsdp not in (-1, devices):
    yield mesh
  for tensor in (2, 4):
    if config.mesh.tensor < tensor and devices % tensor == 0:
      yield mesh | {"mesh.fsdp": devices // tensor, "mesh.tensor": tensor}
  for name, spec in reversed(config.models.items()):
    if spec.get("param_dtype", "bfloat16") != "bfloat16":
      yield {f"models.{name}.param_dtype": "bfloat16"}
  prompts = config.rollout.prompts
  for factor in (2, 4):
    yield {"rollout.prompts": prompts // factor}


def _remedy(config, devices, topology) -> str | None:
  """Finds the first change with which every program fits."""
  for change in _changes(config, len(devices)):
    fitted = _fitted(config, change, devices)
    if fitted is None:
      continue
    changed, text = fitted
    print(f"trying {text}", file=sys.stderr)
    try:
      compiler = Compiler(changed, devices)
    except UserError:
      continue  # heads don't divide, or the method needs the whole minibatch
    if all(program.fits for program in _programs(compiler, topology)):
      return text
  return None


def _fitted(config, change, devices) -> tuple[Any, str] | None:
  """Changes a config, with fewer minibatches where fewer prompts need them.

  Returns:
    (the config, the changes as flags); None if its batch doesn't divide.
  """
  changed = copy.deepcopy(config)
  with changed.unlocked():
    changed.update_from_flattened_dict(change)
  train = changed.train
  mesh = sharding.make_mesh(changed.mesh.to_dict(), devices)
  sizes = batches.of_run(mesh, None, changed.rollout, train)
  if not sizes.fit:
    # As many prompts in each, but a shorter rollout.
    fewer = [x for x in batches.changes(sizes) if "minibatches" in x]
    if "rollout.prompts" not in change or not fewer:
      return None
    train.minibatches = fewer[0]["minibatches"]
    change = change | {"train.minibatches": train.minibatches}
  return changed, batches.flags(change)
