"""Embeddings of texts and pictures by a model's last hidden state."""

from collections.abc import Sequence
import functools

import jax
import numpy as np

from mmrl import hub
from mmrl.models import tower, vlm
from mmrl.strategies.ask import Reply, Request
from mmrl.strategies.cvr.retrieval import embedding_text


class Embedder:
  """Replies with the hidden state of a conversation's last token, as JSON.

  Attributes:
    in_flight: most requests of a call.
  """

  def __init__(self, model: hub.Model, *, in_flight: int = 64):
    self.in_flight, self._model = in_flight, model

  def __call__(self, requests: Sequence[Request]) -> list[Reply | Exception]:
    """Answers each request by itself; see `Responder`."""
    return [self._one(request) for request in requests]

  def _one(self, request: Request) -> Reply | Exception:
    model, processor = self._model, self._model.processor
    try:
      encoded = processor.encode(request.ask.messages, request.name)
      prompt = processor.collate([encoded])
      hidden = np.asarray(_embed(model.params, model.config, prompt))[0]
    except Exception as error:  # of this request, whatever it is
      return error
    return Reply(
      embedding_text(hidden.tolist()), prompt_tokens=int(prompt.mask.sum())
    )


@functools.partial(jax.jit, static_argnames=("config",))
def _embed(params, config, prompt):
  visual = tower.vision(params, config, prompt.patches)
  return vlm.prefill(params, config, prompt, visual).last_hidden
