"""The two models of a table, where their questions come from, and checks."""

from collections.abc import Iterator
import dataclasses
from typing import Any

from etils import epath
import ml_collections

from mmrl import build, json_files, storage
from mmrl.errors import UserError, nearest
from mmrl.hub import config_json, directory
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.rewards.looks import region
from mmrl.workdir import claim

# Fields of two runs' configs that decide what they learn from and are asked.
_DATA = (
  *("data.train.", "models.policy.max_pixels", "models.policy.side"),
  "models.policy.video.",
)


@dataclasses.dataclass(frozen=True)
class Side:
  """One of the two models.

  Attributes:
    name: as given on the command line.
    model: its directory.
    config: of the run that wrote it; None where there is none.
  """

  name: str
  model: epath.Path
  config: ml_collections.ConfigDict | None


def find(name: str) -> Side:
  """Finds a model: of a working directory, or as `hub.load` takes it.

  Raises:
    UserError: if there is none, or the run hasn't finished.
  """
  if storage.is_place(name) and storage.is_dir(name):
    place = storage.path(name)
    # `hub.save` writes config.json last, so the model is complete.
    if (place / "model" / "config.json").exists():
      return Side(name, place / "model", claim.config_of(place))
    if "rollout" in json_files.optional(place / "config.json"):
      raise UserError(
        f"expected a trained model at {place / 'model'}, found none; let python"
        " -m mmrl.train finish with this --workdir, or write its newest"
        " checkpoint by python -m mmrl.export and pass that directory"
      )
  model = directory.find(name)
  above = model.parent
  is_of_run = model.name == "model" and (above / "config.json").exists()
  return Side(name, model, claim.config_of(above) if is_of_run else None)


def choose_config(
  first: Side,
  second: Side,
  given: ml_collections.ConfigDict | None,
  benchmark: str,
) -> tuple[ml_collections.ConfigDict, str]:
  """Chooses the config that says what is asked: the given one, or the runs'.

  Args:
    first, second: the models.
    given: on the command line, or None.
    benchmark: name of one; "" for the config's first.

  Returns:
    (config, name of the benchmark).

  Raises:
    UserError: if there is none, or the two runs have other data.
  """
  configs = [x.config for x in (first, second) if x.config is not None]
  if given is not None:
    return given, choose_benchmark(given, benchmark)
  if not configs:
    raise UserError(
      f"expected the working directory of a run, or --config, which says what"
      f" is asked, found the models {first.name} and {second.name} alone"
    )
  name = choose_benchmark(configs[0], benchmark)
  read = (*_DATA, f"evaluation.benchmarks.{name}.")
  one, other = (claim.flat(configs[i].to_dict()) for i in (0, -1))
  for field in sorted(one.keys() | other.keys()):
    if field.startswith(read) and one.get(field) != other.get(field):
      raise UserError(
        f"expected runs of the same data, found config.{field}"
        f" {one.get(field)!r:.80} in {first.name} and {other.get(field)!r:.80}"
        f" in {second.name}; pass --config=FILE with what both are to be asked"
      )
  return configs[0], name


def choose_benchmark(config: ml_collections.ConfigDict, name: str) -> str:
  """Returns the name of a benchmark; "" is the config's first.

  Raises:
    UserError: if there is none of that name.
  """
  there = config.evaluation.benchmarks.to_dict()
  if name not in there and (name or not there):
    raise UserError(
      f"--benchmark: expected one of config.evaluation.benchmarks,"
      f" {', '.join(there) or 'of which there is none'}, found"
      f" {name or 'none'!r}{nearest(name, there)}"
    )
  return name or next(iter(there))


def target_fraction(
  first: Side, second: Side, given: ml_collections.ConfigDict | None
) -> float | None:
  """Finds the share of tokens that SAYO's target attention score reads.

  It is that of a reward `target_attention`, else `region_attention`, of the
  given config, else of the runs' configs.

  Returns:
    In (0, 1]; None where none of them has such a reward.

  Raises:
    UserError: if the two runs read different shares.
  """
  if given is not None and (fraction := _fraction_of(given)):
    return fraction
  found = [
    (side.name, fraction)
    for side in (first, second)
    if side.config is not None and (fraction := _fraction_of(side.config))
  ]
  if len({fraction for _, fraction in found}) > 1:
    (one, here), (other, there) = found
    raise UserError(
      "expected one fraction of the tokens that region_attention reads, found"
      f" {here} in {one} and {there} in {other}; pass --config=FILE, whose"
      " reward says which"
    )
  return found[0][1] if found else None


def _fraction_of(config: ml_collections.ConfigDict) -> float | None:
  """Reads `fraction` of a config's reward of the region; None without one."""
  rewards = config.rewards.to_dict().values()
  for name, function in (
    ("target_attention", region.target_attention),
    ("region_attention", region.region_attention),
  ):
    for spec in rewards:
      if spec and spec.get("name") == name:
        default = build.signature(function).parameters["fraction"].default
        return spec.get("fraction", default)
  return None


def check_alike(
  first: tuple[Side, Processor], second: tuple[Side, Processor]
) -> ModelConfig:
  """Checks that two models have one shape, and read the same tokens.

  Returns:
    The architecture.

  Raises:
    UserError: naming what differs.
  """
  (one, processor), (other, second_processor) = first, second

  def refuse(what: str, here: Any, there: Any):
    raise UserError(
      f"expected two models of one shape and vocabulary, found {what} {here} in"
      f" {one.name} and {there} in {other.name}"
    )

  architecture = config_json.read(one.model)
  theirs = dict(_flat(config_json.read(other.model)))
  for name, value in _flat(architecture):
    if value != theirs.get(name):
      refuse(name, value, theirs.get(name))
  ours, others = (
    p.tokenizer.get_vocab() for p in (processor, second_processor)
  )
  if ours != others:
    changed = min({*ours.items()} ^ {*others.items()})
    refuse(
      f"the token {changed[0]!r} as",
      *(x.get(changed[0], "none") for x in (ours, others)),
    )
  for name in ("picture", "video"):
    here, there = (getattr(p, name) for p in (processor, second_processor))
    if here != there:
      refuse(f"{name} settings", here, there)
  templates = [p.tokenizer.chat_template for p in (processor, second_processor)]
  if templates[0] != templates[1]:
    refuse(
      "a chat template of", *(f"{len(x or '')} letters" for x in templates)
    )
  return architecture


def _flat(config: ModelConfig) -> Iterator[tuple[str, Any]]:
  """Yields what decides shapes and tokens, by its name."""
  for name, value in dataclasses.asdict(config).items():
    if isinstance(value, dict) and name != "lora":
      yield from ((f"{name}.{key}", one) for key, one in value.items())
    elif name not in ("dtype", "remat", "lora"):
      yield name, value
