"""One question to one model, which the other strategies are compared with."""

from mmrl.data import Example
from mmrl.strategies.ask import Answer, Ask, Steps


def direct(example: Example, *, model: str = "policy") -> Steps:
  """Asks a model and takes its reply.

  Args:
    example: the question.
    model: role of the model.
  """
  reply = yield Ask(model, example.messages)
  return Answer(reply.text, reply.notes)
