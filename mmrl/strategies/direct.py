"""One question to one model, which the other strategies are compared with."""

from collections.abc import Mapping
import types
from typing import Any

from mmrl.data import Example
from mmrl.strategies.ask import Answer, Ask, Steps


def direct(
  example: Example,
  *,
  model: str = "policy",
  options: Mapping[str, Any] = types.MappingProxyType({}),
) -> Steps:
  """Asks a model and takes its reply.

  Args:
    example: the question.
    model: role of the model.
    options: of decoding.
  """
  reply = yield Ask(model, example.messages, options)
  return Answer(reply.text, reply.notes)
