"""adapter_config.json of PEFT: what it may say, and what is written."""

from collections.abc import Mapping, Sequence
import contextlib
import re
from typing import Any

from etils import epath

from mmrl.errors import UserError
from mmrl.hub import tensors as tensors_lib
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES
from mmrl.models.families.family import nested

# Fields of adapter_config.json that are read, or that don't change what an
# adapter computes once it is trained. Others must be empty.
_READ = (
  "peft_type",
  "r",
  "lora_alpha",
  "use_rslora",
  "target_modules",
  "exclude_modules",
  "base_model_name_or_path",
  "bias",
  "init_lora_weights",
)
_HARMLESS = (
  "auto_mapping",
  "inference_mode",
  "lora_dropout",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "runtime_config",
  "task_type",
)
# Ways to begin that leave the base as it is; PiSSA and others change it.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_ADVICE = "train or save it without, or merge it (PEFT: merge_and_unload)"


def check(raw: Mapping[str, Any], path: epath.Path) -> None:
  """Refuses kinds of adapters, and options, that aren't computed here.

  Raises:
    UserError: naming the field.
  """
  if raw.get("peft_type") != "LORA":
    raise UserError(
      f"{path}: expected peft_type 'LORA', found {raw.get('peft_type')!r:.80};"
      " other adapters aren't computed: merge it (PEFT: merge_and_unload)"
    )
  if raw.get("bias", "none") != "none":
    raise UserError(
      f"{path}: expected bias 'none', found {raw['bias']!r:.80}; {_ADVICE}"
    )
  if raw.get("init_lora_weights") not in _BEGINNINGS:
    raise UserError(
      f"{path}: expected init_lora_weights that leave the base model as it is,"
      f" found {raw['init_lora_weights']!r:.80}; convert it (PEFT:"
      " save_pretrained with path_initial_model_for_weight_conversion)"
    )
  for key in ("target_modules", "exclude_modules"):
    _check_modules(key, raw.get(key), path)
  for key, value in sorted(raw.items()):
    if key not in (*_READ, *_HARMLESS) and value:
      raise UserError(
        f"{path}: expected LoRA with one rank and one alpha, found {key}"
        f" {value!r:.80}, which isn't computed here; {_ADVICE}"
      )


def _check_modules(key: str, value: Any, path: epath.Path) -> None:
  """Checks that names of modules are a list of them or a regular expression."""
  good = value is None or isinstance(value, str)
  if isinstance(value, list):
    good = all(isinstance(one, str) for one in value)
  with contextlib.suppress(re.error):
    if good and (value or key == "exclude_modules"):
      re.compile(value if isinstance(value, str) else "")
      return
  raise UserError(
    f"{path}: expected {key} to be names of layers or a regular expression,"
    f" found {value!r:.160}; get the adapter's files again"
  )


def same_model(one: str, other: str) -> bool:
  """Tells whether two names of a model, paths or hub ids, may be the same.

  A model is often in another folder than where its adapter was trained, so the
  last part counts, and of the hub's cache the model's name.
  """

  def stem(name: str) -> str:
    cached = re.search(r"models--[^/]*?--([^/]+)/snapshots/", name)
    name = cached[1] if cached else name.rstrip("/").split("/")[-1]
    return name.partition("@")[0].lower()

  return stem(one) == stem(other)


def matches(targets: Any, name: str) -> bool:
  """Tells whether PEFT's target_modules or exclude_modules match a module.

  Older versions of Transformers have other names for it, which match, too.
  """
  if not targets:
    return False
  names = name, tensors_lib.canonical(name)
  if targets == "all-linear":
    return True
  if isinstance(targets, str):
    return any(re.fullmatch(targets, one) for one in names)
  return any(
    one == target or one.endswith(f".{target}")
    for target in targets
    for one in names
  )


def to_json(
  config: ModelConfig, paths: Sequence[str], name: str
) -> dict[str, Any]:
  """Returns the object in adapter_config.json.

  Args:
    config: of the model with the adapter.
    paths: of the layers that it is on.
    name: of the base model.
  """
  lora = config.lora
  assert lora is not None
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": name,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "use_rslora": lora.rs,
    "target_modules": _pattern(config, paths),
    "bias": "none",
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
  }


def _pattern(config: ModelConfig, paths: Sequence[str]) -> str:
  """Returns a regular expression of the modules, for `target_modules`.

  Names alone, such as up_proj, would match the tower, too. It ends with the
  names of layers in brackets where it can: vLLM looks for them there.
  """
  names = FAMILIES[config.family].tensors
  patterns = [
    re.escape(nested(names[path])).replace(r"\{\}", r"\d+") for path in paths
  ]
  if all(path.startswith("text/layers/") for path in paths):
    start = patterns[0].partition(r"\d+")[0]
    last = "|".join(pattern.rsplit(r"\.", 1)[1] for pattern in patterns)
    return rf"{start}\d+\.\w+\.({last})"
  return "|".join(patterns)
