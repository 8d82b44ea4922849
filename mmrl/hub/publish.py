"""A model or adapter put on the Hugging Face hub, with a model card."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub import utils as hub_utils

from mmrl import storage
from mmrl.errors import UserError

_CARD = "README.md"
# What the hub adds by itself, and weights that a new push replaces.
_REPLACED = re.compile(
  r"\.gitattributes|model(-\d+-of-\d+)?\.safetensors(\..*)?"
)
_LICENCE = ("license", "license_name", "license_link")


@dataclasses.dataclass(frozen=True)
class Card:
  """Content of a model card: the run that a pushed model is of.

  Attributes:
    step: after which the model was.
    best: number by which the step is the run's best; "" if it wasn't chosen.
    config: of the run.
    base: hub id of the model that it began with; "" if that is a directory.
    numbers: of benchmarks, by name: before training, and at the step; NaN or
      lacking where it wasn't evaluated.
    adapter: whether it is an adapter alone.
  """

  step: int
  best: str
  config: Mapping[str, Any]
  base: str
  numbers: Mapping[str, tuple[float, float | None]]
  adapter: bool


def check_name(repository: str) -> None:
  """Checks a name of a repository, which needs no network.

  Raises:
    UserError: if it isn't USER/NAME.
  """
  try:
    hub_utils.validate_repo_id(repository)
    reason = "" if "/" in repository else "no user or organisation"
  except hub_errors.HFValidationError as error:
    reason = " ".join(str(error).split())
  if reason:
    raise UserError(
      f"expected --push=USER/NAME, a repository of the hub, found"
      f" {repository!r:.120}: {reason:.200}"
    )


def check_ready(repository: str, *, private: bool) -> None:
  """Checks that something can be pushed, before it is made.

  Raises:
    UserError: if there is no token, the hub can't be reached, or the repository
      is public and is to be private.
  """
  check_name(repository)
  if huggingface_hub.get_token() is None:
    raise UserError(
      "expected a token of the hub that may write, found none; run hf auth"
      " login, or set HF_TOKEN"
    )
  with _refused(f"the hub to let this push to {repository}"):
    huggingface_hub.HfApi().whoami()
    there = _look(repository)
  if private and there is not None and not there.private:
    raise UserError(
      f"expected --private to be of a repository that is, found {repository},"
      " which is public; make it private on the hub, or leave out --private"
    )


def push(
  folder: storage.Name, repository: str, card: Card, *, private: bool
) -> str:
  """Pushes a folder with a card as one commit; earlier ones stay on the hub.

  Args:
    folder: local, with all that is to be pushed; the card is written to it.
    repository: USER/NAME; made if it isn't there.
    card: what the card tells.
    private: whether a repository that is made is private.

  Returns:
    The address of the repository.

  Raises:
    UserError: if the hub refuses, or the repository has files of something
      else.
  """
  path = pathlib.Path(folder)
  with _refused(f"the hub to take {repository}"):
    there = _look(repository)
    licence = _licence(card)
  text = write(card, repository, licence)
  storage.write_text(path / _CARD, text)
  ours = {str(file.relative_to(path)) for file in path.rglob("*")}
  found = [one.rfilename for one in (there.siblings or [])] if there else []
  other = [x for x in found if x not in ours and not _REPLACED.fullmatch(x)]
  if other:
    raise UserError(
      f"expected a repository of its own, found {len(other)} other files in"
      f" {repository}, {min(other)!r:.100} first; push to another name, or"
      " delete them on the hub"
    )
  with _refused(f"the hub to take {repository}"):
    api = huggingface_hub.HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
      repo_id=repository,
      folder_path=path,
      commit_message=f"Step {card.step} of a run of mmrl",
      # Of an earlier push that had more shards.
      delete_patterns=[x for x in found if x not in ours and x[0] != "."],
    )
  return str(address)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
  """Says in one line what the hub has refused, or that it can't be reached."""
  try:
    yield
  except Exception as error:  # Those of its HTTP client are of any kind.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
      f"expected {what}, found: {reason:.300}; see to the network and to the"
      " rights of your token (hf auth login), then run the same command again"
    ) from error


def _look(repository: str) -> Any:
  """Describes a repository; None if there is none, or none that is shown."""
  try:
    return huggingface_hub.HfApi().model_info(repository)
  except hub_errors.RepositoryNotFoundError:
    return None


def _licence(card: Card) -> dict[str, str]:
  """Finds the licence of the base model: {} if it doesn't say.

  Of a directory it is in its own card.
  """
  path = card.config["models"]["policy"]["path"]
  if path == "tiny":
    return {"license": "apache-2.0"}
  if card.base:
    there = _look(card.base)
    about = there.card_data if there else None
  else:
    try:
      text = storage.read_text(storage.path(path) / _CARD)
    except OSError:
      return {}
    about = huggingface_hub.ModelCard(text, ignore_metadata_errors=True).data
  found = about.to_dict() if about else {}
  return {key: str(found[key]) for key in _LICENCE if found.get(key)}


def write(card: Card, repository: str, licence: Mapping[str, str]) -> str:
  """Writes a model card: the hub's metadata, and a page in Markdown.

  Args:
    card: what it tells.
    repository: USER/NAME.
    licence: of the base model, as the hub's metadata has it; may be empty.
  """
  learns = card.config["rollout"]["name"] != "given"
  path = str(card.config["data"]["train"].get("path", ""))
  dataset = re.match("hub:([^/@]+/[^/@]+)", path)
  data = huggingface_hub.ModelCardData(
    base_model=card.base or None,
    base_model_relation=("adapter" if card.adapter else "finetune")
    if card.base
    else None,
    library_name="peft" if card.adapter else "transformers",
    pipeline_tag="image-text-to-text",
    datasets=[dataset[1]] if dataset else None,
    tags=[
      *("mmrl", "multimodal"),
      *(["reinforcement-learning"] if learns else []),
      *(["lora"] if card.adapter else []),
    ],
    **licence,
  )
  base = f"[{card.base}](https://hf.co/{card.base})" if card.base else ""
  # Addresses of trackers may have a password in them.
  config = _public({**card.config, "trackers": {}})
  policy = config["models"]["policy"]["path"]
  chosen = f", its best by {card.best}" if card.best else ""
  parts = [
    f"---\n{data.to_yaml()}\n---",
    f"# {repository.partition('/')[2]}",
    f"{'A LoRA adapter of' if card.adapter else 'Trained from'}"
    f" {base or policy} by mmrl: step"
    f" {card.step} of {card.config['train']['steps']}{chosen}, seed"
    f" {card.config['seed']}.",
    _licence_text(base or policy, licence),
    _table(card),
    "## Use",
    _use(card, repository),
    "## Training",
    "The config of the run, without its trackers and the folders of its paths:",
    f"```json\n{json.dumps(config, indent=2)}\n```",
    "A file `config.py` beside it (`config.json`) runs it again:",
    f"```python\n{_AGAIN}```",
    "    python -m mmrl.train --config config.py --workdir runs/again",
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


_AGAIN = """import json
import pathlib

import ml_collections


def get_config():
  file = pathlib.Path(__file__).with_name("config.json")
  return ml_collections.ConfigDict(json.loads(file.read_text()))
"""


def _licence_text(base: str, licence: Mapping[str, str]) -> str:
  if not licence:
    return f"What licence {base} has, its files don't say; it is this model's."
  name = licence.get("license_name") or licence["license"]
  return f"The licence is that of {base}: {name}."


def _table(card: Card) -> str:
  """Sets the numbers of benchmarks before training and at the step."""
  if not card.numbers:
    return ""
  lines = [f"| | before | step {card.step} |", "|---|---|---|"]
  for name, (before, at) in card.numbers.items():
    shown = "–" if at is None else f"{at:.4g}"
    lines.append(f"| {name} | {before:.4g} | {shown} |")
  return "## Evaluation\n\nGreedy answers.\n\n" + "\n".join(lines)


def _use(card: Card, repository: str) -> str:
  model, adapter = repository, ""
  if card.adapter:
    model, adapter = card.base or "DIR", f" --adapter {repository}"
  return (
    f"    python -m mmrl.sample --model {model}{adapter} --image FILE"
    ' --prompt "what is it?"\n\n'
    + ("PEFT loads it" if card.adapter else "Transformers and vLLM load it")
    + " by the name of this repository."
  )


def _public(value: Any) -> Any:
  """Returns a config without folders of the machine that it ran on."""
  if isinstance(value, Mapping):
    return {key: _public(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_public(one) for one in value]
  if isinstance(value, str) and os.path.isabs(value):
    return os.path.basename(value.rstrip("/"))
  return value
