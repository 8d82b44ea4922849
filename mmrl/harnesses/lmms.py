"""The model `mmrl` of lmms-eval, after `pip install -e '.[lmms]'`.

  python -m lmms_eval --model mmrl --model_args pretrained=runs/mine \\
    --tasks mmstar --batch_size 16

lmms-eval 0.7 finds it by its entry point. `pretrained` is a checkpoint or the
working directory of a run; the other arguments are those of `AskedModel`, and
`system_prompt`. It answers tasks of messages, and with --force_simple those of
a text and pictures, which is what scores choices by their likelihood. Several
processes and several rounds aren't supported.
"""

from collections.abc import Sequence
import os
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
import numpy as np
from PIL import Image
from tqdm import tqdm

from mmrl.errors import UserError
from mmrl.harnesses.model import AskedModel, conversation, cut, decoding

_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v")


class Simple(lmms):  # type: ignore[misc]
  """Answers requests of a text and what is shown."""

  is_simple = True

  def __init__(
    self,
    pretrained: str,
    batch_size: int | str = 16,
    system_prompt: str = "",
    **settings: Any,
  ):
    """Loads the model; called with `--model_args` and `--batch_size`.

    Args:
      pretrained: a model, or the working directory of a run.
      batch_size: questions that are answered together.
      system_prompt: message of the system; none if empty.
      **settings: see `AskedModel`.

    Raises:
      UserError: naming the argument that is wrong.
    """
    super().__init__()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
      raise UserError(
        "expected one process, which has all devices, found WORLD_SIZE"
        f" {os.environ['WORLD_SIZE']}; start lmms_eval without accelerate"
      )
    for name in ("device", "max_batch_size"):
      if settings.pop(name, None) is not None:
        raise UserError(
          f"expected no {name}, found one: JAX has the devices that"
          " JAX_PLATFORMS says, and --batch_size is what is asked together;"
          " leave it out"
        )
    if not str(batch_size).isdigit():
      raise UserError(
        f"--batch_size: expected a number of questions, found {batch_size!r};"
        " auto isn't known here"
      )
    self.batch_size = int(batch_size)
    self.system_prompt = system_prompt
    self._model = AskedModel(pretrained, batch=self.batch_size, **settings)

  def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
    """Answers, in order; texts end before the first string of `until`."""
    names = _names(requests)
    conversations: list[list[dict]] = []
    options: list[dict[str, Any]] = []
    ends: list[list[str]] = []
    for request, name in zip(requests, names, strict=True):
      messages, given = self._asked(request, name)
      given = dict(given)
      until = given.pop("until", [])
      ends.append([until] if isinstance(until, str) else list(until or []))
      conversations.append(messages)
      options.append(decoding(given, name))
    found = []
    bar = tqdm(total=len(requests), desc="mmrl", disable=not requests)
    chunk = 4 * self.batch_size
    for start in range(0, len(requests), chunk):
      part = slice(start, start + chunk)
      replies = self._model.answers(
        conversations[part], names[part], options[part]
      )
      bar.update(len(replies))
      for reply, until in zip(replies, ends[part], strict=True):
        used = TokenCounts(reply.prompt_tokens, reply.completion_tokens)
        found.append(GenerationResult(cut(reply.text, until), used))
    bar.close()
    return found

  def _asked(self, request: Instance, name: str) -> tuple[list[dict], Any]:
    """Returns conversation and options of a request."""
    text, options, visual, doc_id, task, split = request.args
    return self._turn(text, visual, (task, split, doc_id), name), options

  def _turn(self, text: str, visual: Any, at: Any, name: str) -> list[dict]:
    task, split, doc_id = at
    found = visual(self.task_dict[task][split][doc_id]) if visual else []
    shown = [_part(one, name) for one in found or []]
    return conversation(text, shown, self.system_prompt)

  def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
    """Scores continuations, in order: loss, whether decoding writes it.

    The loss is minus the log-probability, nats, of all its tokens: lmms-eval
    takes the choice of the least, as its own models give losses, too. And 0.7
    makes text of a pair, unless it comes as the text of a `GenerationResult`.
    """
    names = _names(requests)
    conversations: list[list[dict]] = []
    continuations: list[str] = []
    for request, name in zip(requests, names, strict=True):
      if len(request.args) != 6:
        raise UserError(
          f"{name}: expected a text, a continuation and what is shown, found"
          f" {len(request.args)} arguments; metrics such as acc_mutual_info,"
          " which score choices alone, aren't known here"
        )
      text, continuation, visual, doc_id, task, split = request.args
      if callable(continuation):
        continuation = continuation(self.task_dict[task][split][doc_id])
      at = task, split, doc_id
      conversations.append(self._turn(text, visual, at, name))
      # The template opens the answer: a space in front would be its first.
      continuations.append(str(continuation).removeprefix(" "))
    found = self._model.likelihoods(conversations, continuations, names)
    return [GenerationResult((-x, greedy), None) for x, greedy in found]

  def generate_until_multi_round(self, requests: Sequence[Instance]) -> Any:
    raise UserError(
      "expected tasks of one round, found one of several; leave it out"
    )


class Chat(Simple):
  """Answers requests of messages."""

  is_simple = False

  def _asked(self, request: Instance, name: str) -> tuple[list[dict], Any]:
    _, messages, options, doc_id, task, split = request.args
    given = messages(self.task_dict[task][split][doc_id])
    found: list[dict] = []
    if self.system_prompt:
      found.append({"role": "system", "content": self.system_prompt})
    for message in ChatMessages(messages=given).messages:
      parts = [_content(one, name) for one in message.content]
      found.append({"role": message.role, "content": parts})
    return found, options


def _names(requests: Sequence[Instance]) -> list[str]:
  """Names requests; a repeated one draws other random numbers each time."""
  times: dict[str, int] = {}
  found = []
  for one in requests:
    name = f"{one.metadata['task']}/{one.metadata['doc_id']}/{one.idx}"
    times[name] = times.get(name, 0) + 1
    found.append(name if times[name] == 1 else f"{name}#{times[name]}")
  return found


def _content(one: Any, name: str) -> dict:
  """Returns the message part of a part of theirs."""
  if one.type == "text":
    return {"type": "text", "text": one.text}
  if getattr(one, "start_time", None) or getattr(one, "end_time", None):
    raise UserError(
      f"{name}: expected whole videos, found one with a start or an end; cut it"
      " before"
    )
  if one.type not in ("image", "video"):
    raise UserError(f"{name}: expected pictures and videos, found {one.type}")
  return _part(one.url, name, one.type)


def _part(one: Any, name: str, kind: str = "") -> dict:
  """Returns the message part of a picture, or of the file of one or a video."""
  if isinstance(one, Image.Image):
    return {"type": "image", "image": one}
  if isinstance(one, np.ndarray) and one.ndim == 3:
    return {"type": "image", "image": one}
  if isinstance(one, str):
    kind = kind or ("video" if one.lower().endswith(_VIDEOS) else "image")
    return {"type": kind, kind: one}
  raise UserError(
    f"{name}: expected pictures, or files of pictures or videos, found"
    f" {type(one).__name__}"
  )
