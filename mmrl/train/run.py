"""A run: its parts, weights and data, and a check of the data."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmrl import data, inspection, storage
from mmrl.benchmarks import best, runner
from mmrl.benchmarks.contract import Benchmark
from mmrl.config import check_fields
from mmrl.errors import UserError, say, tell
from mmrl.inspection import Finding, Remaining, buckets
from mmrl.machines import batches, compilation, processes, sharding
from mmrl.prompts.processor import Processor
from mmrl.report import samples
from mmrl.rewards import needs
from mmrl.strategies import asking
from mmrl.train import models as models_lib
from mmrl.train import walk
from mmrl.train.parts import Parts, build_parts
from mmrl.train.state import State
from mmrl.types import PyTree
from mmrl.workdir import questions, trackers

# The list of questions that can't be used, in a working directory.
CHECKED = "check.jsonl"


@dataclasses.dataclass(frozen=True)
class Prepared(Parts):
  """A run without weights: its parts and data.

  Attributes:
    processor: tokenizer and pictures.
    train_source: questions to train on.
    benchmarks: questions to evaluate on, by name.
  """

  processor: Processor
  train_source: Any
  benchmarks: Mapping[str, Benchmark]


@dataclasses.dataclass(frozen=True)
class Run(Prepared):
  """A run that is built: its parts, weights and data.

  Attributes:
    record: data files, and the questions that are left out.
    params: initial parameters of the policy; None once a state is made of
      them, so that they take no memory.
    fixed: parameters of the models that don't change, by name.
  """

  record: questions.Record
  params: PyTree | None
  fixed: Mapping[str, PyTree]

  def initial_state(self) -> State:
    """Makes the state of step 0 from copies, as updates donate their state."""

    def make(params: PyTree) -> State:
      return self.first_state(jax.tree.map(jnp.copy, params))

    shapes = jax.eval_shape(make, self.params)
    return jax.jit(make, out_shardings=self.layout.of(shapes))(self.params)

  def at_step(self, state: State, step: int) -> State:
    """Returns the state with its step set to `step`.

    The number keeps its sharding; otherwise programs would be recompiled.
    """
    number = self.layout.number(np.int32(step))
    return dataclasses.replace(state, step=number)


def build_run(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  *,
  workdir: storage.Name | None = None,
  check_to: storage.Name | None = None,
) -> Run:
  """Builds a run from a config: checks everything, loads weights and data.

  Args:
    config: see `mmrl.config`.
    devices: devices to run on; all by default.
    workdir: where a run that resumes has remembered its questions.
    check_to: file for a list of questions that can't be used, if all questions
      are to be inspected first; see `check`.

  Raises:
    UserError: naming the field of the config that is wrong, or the question
      that can't be used, if the config has all of them inspected.
  """
  prepared = prepare(config, devices)
  found = check(prepared, check_to) if check_to else None
  record = _recall(prepared, workdir, found)
  source = prepared.train_source
  if record.skipped:
    source = Remaining(source, [one.index for one in record.skipped])
  prepared = dataclasses.replace(prepared, config=_sized(config, record))
  # With the sizes of the data, so that nothing is traced again later.
  walk.check(prepared)
  policy = models_lib.add_weights(
    config, prepared.processor, prepared.layout.parameter
  )
  prepared.source.open(source, policy.processor)
  for one in prepared.asked.values():
    one.open()
  return Run(
    **vars(prepared) | {"train_source": source},
    record=record,
    params=policy.params,
    fixed=models_lib.load_fixed(
      prepared.method.models, policy, prepared.beginning(policy.params)
    ),
  )


def prepare(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> Prepared:
  """Builds all of a run that needs no weights; see `build_run`."""
  check_fields(config)
  compilation.keep_programs(config.compilation_cache)
  mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
  layout = batches.layout(mesh, config.rollout, config.train)
  for name in ("lengths", "patches"):
    if jax.process_count() > 1 and len(config.data[name]) > 1:
      raise UserError(
        f"config.data.{name}: expected one size, or none, with several"
        " processes, which would choose different ones, found"
        f" {tuple(config.data[name])}"
      )
  processor = models_lib.load_processor(config)
  parts = build_parts(
    config,
    processor.config,
    layout,
    models_lib.read_architectures(config),
  )
  train_source = data.sources.make(
    config.data.train.to_dict(), "config.data.train"
  )
  graded: list[Any] = [*parts.method.rewards, *parts.method.terms]
  needs.require_all([one.bound for one in graded], train_source)
  trackers.resolve(config.trackers.to_dict())
  samples.check(config)
  benchmarks = runner.build_benchmarks(config.evaluation.to_dict())
  read = runner.give_models(benchmarks, parts.asked)
  read += [name for one in graded for name in one.bound.needs]
  asking.check_read(parts.asked, read)
  best.check(config, benchmarks)
  return Prepared(
    **vars(parts),
    processor=processor,
    train_source=train_source,
    benchmarks=benchmarks,
  )


def limits(prepared: Prepared, *, learns: bool) -> inspection.Limits:
  """Returns the largest sizes of a question, and of its texts if it learns."""
  sizes = prepared.config.data
  return inspection.Limits(
    tokens=max(sizes.lengths, default=0),
    patches=max(sizes.patches, default=0),
    answer=prepared.config.rollout.length,
    learns=learns,
  )


def check(prepared: Prepared, output: storage.Name) -> list[Finding]:
  """Inspects all questions of a run, and prints what was found.

  Returns what was found of those to train on.

  Args:
    prepared: the run.
    output: file that lists the questions that can't be used, a JSON object on
      each line; an empty file if all can.

  Raises:
    UserError: if there are some, and the config doesn't leave them out.
  """
  config = prepared.config
  sizes = config.data.lengths, config.data.patches
  train = _inspect_train(prepared)
  every = {"config.data.train": train} | {
    f"config.evaluation.benchmarks.{name}": _inspect_benchmark(
      prepared, benchmark, name
    )
    for name, benchmark in prepared.benchmarks.items()
  }
  if jax.process_index() == 0:
    for field, found in every.items():
      say(f"{field}: " + "\n".join(inspection.describe(found, *sizes)))
  wrong, refused = [], []
  for found in every.values():
    faults = [one for one in found if one.fault]
    wrong += faults
    # An evaluation without some of its questions would be another one.
    refused += [
      one for one in faults if found is not train or not _skips(config, one)
    ]
  processes.first_only(
    lambda: storage.write_text(output, questions.lines(wrong))
  )
  if refused:
    raise UserError(
      f"expected questions that can be used, found {len(refused)} that can't;"
      f" {output} lists them. The first: {refused[0].message}"
    )
  return train


def _inspect(
  prepared: Prepared,
  source: Any,
  title: str,
  *,
  learns: bool = False,
  outlines: bool = False,
) -> list[Finding]:
  """Inspects the questions of a source; each process takes its share."""
  mine = inspection.inspect(
    source,
    prepared.processor,
    limits(prepared, learns=learns),
    indices=range(jax.process_index(), len(source), jax.process_count()),
    outlines=outlines,
    workers=prepared.config.data.workers,
    title=title,
  )
  shares = processes.gather(questions.lines(mine))
  found = [one for share in shares for one in questions.parse(share)]
  return sorted(found, key=lambda one: one.index)


def _inspect_train(
  prepared: Prepared, *, outlines: bool = False
) -> list[Finding]:
  return _inspect(
    prepared,
    prepared.train_source,
    "training questions",
    learns=prepared.source.learns,
    outlines=outlines,
  )


def _inspect_benchmark(
  prepared: Prepared, benchmark: Benchmark, name: str
) -> list[Finding]:
  """Inspects a benchmark; the pictures of each batch share their room."""
  found = _inspect(prepared, benchmark, name)
  pack = -(-prepared.config.evaluation.batch // prepared.layout.most)
  shared = inspection.packed(found, pack)
  most = limits(prepared, learns=False)
  return [
    dataclasses.replace(judged, patches=one.patches)
    for one, judged in zip(
      found, (inspection.judge(one, most) for one in shared), strict=True
    )
  ]


def _skips(config: ml_collections.ConfigDict, found: Finding) -> bool:
  """Tells whether a config leaves out a question with this fault."""
  if found.fault == inspection.BROKEN:
    return config.data.skip_broken
  return bool(found.fault) and config.data.skip_long


def _recall(
  prepared: Prepared,
  workdir: storage.Name | None,
  found: Sequence[Finding] | None,
) -> questions.Record:
  """Recalls what a run knows of its questions, or inspects all of them.

  They are inspected if some are to be left out, or sizes come from them.

  Args:
    prepared: the run.
    workdir: of the run, or None.
    found: what was found of the training questions, if they were inspected.

  Raises:
    UserError: naming a question that can't be used and isn't left out.
  """
  config = prepared.config
  record = questions.Record(
    questions.measure([prepared.train_source, *prepared.benchmarks.values()])
  )
  earlier = questions.recall(workdir) if workdir is not None else None
  changed = record.changed(earlier) if earlier else []
  first = jax.process_index() == 0
  if first and changed:
    questions.say_changed(changed)
  sized = config.data.lengths and config.data.patches
  if sized and not (config.data.skip_broken or config.data.skip_long):
    return record
  if earlier and not changed:
    record = earlier
  else:
    if found is None:
      # For sizes alone no picture is decoded.
      outlines = not config.data.skip_broken
      found = _inspect_train(prepared, outlines=outlines)
    skipped = [one for one in found if _skips(config, one)]
    for one in found:
      if one.fault and not _skips(config, one):
        other = "broken" if one.fault == inspection.BROKEN else "long"
        raise UserError(f"{one.message}; or set config.data.skip_{other}")
    record = dataclasses.replace(record, skipped=skipped)
    if not sized:
      sizes = _sizes(prepared, [one for one in found if not one.fault])
      record = dataclasses.replace(
        record, lengths=sizes.lengths, patches=sizes.patches
      )
  if first and record.skipped:
    counts = inspection.counts(record.skipped)
    tell(
      f"left out {len(record.skipped)} of {len(prepared.train_source)} training"
      f" questions ({counts}), which {questions.SKIPPED} lists"
    )
  return record


def _sizes(prepared: Prepared, found: Sequence[Finding]) -> buckets.Buckets:
  """Chooses sizes to pad prompts to from those of all questions.

  Args:
    prepared: the run.
    found: of the questions that it trains on.

  Raises:
    UserError: naming a question of a benchmark that can't be used.
  """
  every = [*found]
  for name, benchmark in prepared.benchmarks.items():
    every += _inspect(prepared, benchmark, name, outlines=True)
  for one in every:
    if one.fault:
      raise UserError(one.message)
  given = prepared.config.data
  chosen = buckets.choose(
    every,
    prepared.processor.config.vision.spatial_merge_size**2,
    lengths=given.lengths,
    patches=given.patches,
    one=prepared.source.one_size or jax.process_count() > 1,
  )
  if jax.process_index() == 0:
    say(
      f"padded to {_listed(chosen.lengths)} tokens and"
      f" {_listed(chosen.patches)} patches, which adds"
      f" {chosen.padding:.0%} to {len(every)} questions"
    )
  return chosen


def _listed(sizes: Sequence[int]) -> str:
  return " or ".join(map(str, sizes))


def _sized(
  config: ml_collections.ConfigDict, record: questions.Record
) -> ml_collections.ConfigDict:
  """Returns the config with the sizes that come from the data."""
  if not (record.lengths and record.patches):
    return config
  config = config.copy_and_resolve_references()
  config.data.lengths = tuple(record.lengths)
  config.data.patches = tuple(record.patches)
  return config


def with_sizes(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> ml_collections.ConfigDict:
  """Returns the config with the sizes of a run that begins.

  Raises:
    UserError: see `build_run`.
  """
  if config.data.lengths and config.data.patches:
    return config
  return _sized(config, _recall(prepare(config, devices), None, None))
