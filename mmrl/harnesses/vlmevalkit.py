"""A model of VLMEvalKit, which isn't installed by its name from an index.

Where its package `vlmeval` can be imported:

  from vlmeval.config import supported_VLM
  from mmrl.harnesses.vlmevalkit import Mmrl
  supported_VLM["mine"] = functools.partial(Mmrl, "runs/mine")

and `run.py --model mine` of a copy with these lines asks it.
"""

from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from mmrl.errors import UserError
from mmrl.harnesses.model import AskedModel, decoding


class Mmrl(BaseModel):  # type: ignore[misc]
  """Answers one message at a time, with pictures between its texts."""

  INSTALL_REQ = False
  INTERLEAVE = True
  # The base class refuses parts of other types, in older versions videos, too.
  allowed_types = ("text", "image", "video")

  def __init__(
    self,
    path: str,
    *,
    options: dict[str, Any] | None = None,
    system_prompt: str = "",
    **settings: Any,
  ):
    """Loads a model.

    Args:
      path: a model, or the working directory of a run.
      options: of decoding, as of Transformers' `generate`; greedy, up to 128
        tokens if None.
      system_prompt: message of the system; none if empty.
      **settings: see `AskedModel`.

    Raises:
      UserError: naming what is wrong.
    """
    super().__init__()
    self._options = decoding(options or {}, "options")
    self._system = system_prompt
    self._model = AskedModel(path, **({"batch": 1} | settings))
    self._asked = 0

  def use_custom_prompt(self, dataset: str) -> bool:
    """Says that questions are asked as the data sets have them."""
    del dataset
    return False

  def generate_inner(
    self, message: Sequence[dict], dataset: str | None = None
  ) -> str:
    """Answers a message.

    Args:
      message: parts, each of a type, text, image or video, and a value; texts
        of role "system" stand in the system's message.
      dataset: isn't used.

    Raises:
      UserError: naming what else a part has, or a file that can't be read.
    """
    del dataset
    system, parts = [self._system] if self._system else [], []
    for part in message:
      kind, role = part.get("type"), part.get("role", "user")
      if kind not in self.allowed_types:
        raise UserError(
          f"expected parts of type text, image or video, found {kind!r:.80}"
        )
      others = sorted({*part} - {"type", "value", "role"})
      if others or "value" not in part:
        raise UserError(
          "expected parts of type, value and role, found"
          f" {others[0] if others else 'no value'}"
        )
      if role == "system" and kind == "text":
        system.append(part["value"])
      elif role == "user":
        parts.append({"type": kind, kind: part["value"]})
      else:
        raise UserError(
          "expected parts of the user, and texts of the system, found"
          f" {kind} of {role!r:.80}"
        )
    turns: list[dict] = [{"role": "user", "content": parts}]
    if system:
      turns.insert(0, {"role": "system", "content": "\n".join(system)})
    self._asked += 1
    name = f"question {self._asked}"
    return self._model.answers([turns], [name], [self._options])[0].text
