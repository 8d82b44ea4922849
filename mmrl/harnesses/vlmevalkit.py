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
    """Answers a message: parts of type text, image or video, each a value."""
    del dataset
    parts = []
    for part in message:
      if part.get("type") not in ("text", "image", "video"):
        raise UserError(
          "expected parts of type text, image or video, found"
          f" {part.get('type')!r:.80}"
        )
      parts.append({"type": part["type"], part["type"]: part["value"]})
    turns = [{"role": "user", "content": parts}]
    if self._system:
      turns.insert(0, {"role": "system", "content": self._system})
    self._asked += 1
    name = f"question {self._asked}"
    return self._model.answers([turns], [name], [self._options])[0].text
