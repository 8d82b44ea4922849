"""What lmms-eval's entry point `lmms_eval.models` finds of this library."""

from typing import Any


def manifest() -> Any:
  """Returns how lmms-eval makes the model `mmrl`; nothing is loaded yet."""
  from lmms_eval.models.registry_v2 import ModelManifest

  return ModelManifest(
    model_id="mmrl",
    simple_class_path="mmrl.harnesses.lmms.Simple",
    chat_class_path="mmrl.harnesses.lmms.Chat",
  )
