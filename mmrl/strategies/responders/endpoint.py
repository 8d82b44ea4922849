"""A model behind an OpenAI-compatible address that answers requests.

`pip install -e '.[judge]'` brings the client. Address and key come from the
environment, so that they are in no config and no log.
"""

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import io
import os
from typing import Any
import urllib.parse
import zlib

import numpy as np
from PIL import Image

from mmrl.data import spread
from mmrl.errors import UserError, not_installed, tell
from mmrl.prompts import parts, pictures, videos
from mmrl.strategies.ask import Reply, Request

# Seconds in which a server must take a connection.
_CONNECT = 5.0
# Statuses of requests that would fail again: no such model, a wrong key, ...
_FINAL = frozenset((400, 401, 403, 404, 405, 413, 422))


def library() -> Any:
  """Imports the client."""
  try:
    import openai
  except ImportError as error:
    raise not_installed("the package openai", "judge") from error
  return openai


def shown_address(address: str) -> str:
  """Returns an address without what may be secret in it."""
  parts = urllib.parse.urlsplit(address)
  host = parts.netloc.rpartition("@")[2]
  return f"{parts.scheme}://{host}{parts.path}"


class Endpoint:
  """Answers requests by a server's chat completions, side by side.

  A request may set `length`, `temperature` and `top_p` for itself. Texts and
  pictures are sent, and frames of videos as pictures, if it is told how many.

  Attributes:
    in_flight: most requests of a call, all of which are under way at a time.
    address: the server's, as it may be shown.
  """

  def __init__(
    self,
    model: str,
    *,
    address: str,
    key: str = "",
    in_flight: int = 64,
    timeout: float = 60.0,
    length: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    frames: int = 0,
  ):
    """Takes where to ask; nothing is sent yet.

    Args:
      model: its name on the server.
      address: such as http://127.0.0.1:8000/v1.
      key: of the server; some want none.
      in_flight: see the class.
      timeout: seconds that a request may take, whatever the server does.
      length: most tokens of a reply.
      temperature: 0 is greedy.
      top_p: share of the probability that is kept.
      seed: of sampling, where the server has one; it and the request's name
        give the number that is sent. None is sent without.
      frames: most frames of a video, which are sent as pictures of its own
        size, spread evenly from the first on; 0 refuses videos.

    Raises:
      UserError: if the address is none, a number is out of range, or the
        client isn't installed.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
      raise UserError(
        "expected the address of a server, such as http://127.0.0.1:8000/v1,"
        f" found {shown_address(address)!r:.80}"
      )
    for name, value in {"timeout": timeout, "in_flight": in_flight}.items():
      if not value > 0:
        raise UserError(f"expected {name} above 0, found {value}")
    if frames < 0:
      raise UserError(
        f"expected frames of at least 0, where 0 refuses videos, found {frames}"
      )
    library()
    self._frames = frames
    self.in_flight, self.address = in_flight, shown_address(address)
    self._model, self._secret = model, (address, key)
    self._timeout, self._silent, self._seed = timeout, False, seed
    self._options = {
      "length": length,
      "temperature": temperature,
      "top_p": top_p,
    }

  def __call__(self, requests: Sequence[Request]) -> list[Reply | Exception]:
    """Answers requests; see `Responder`."""
    # In a thread of its own: a notebook's has a loop of events already.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      found = pool.submit(asyncio.run, self._all(requests)).result()
    away = [one for one in found if isinstance(one, ConnectionError)]
    if away and len(away) == len(found) and not self._silent:
      tell(f"{away[0]}; it is asked again after a while")
    self._silent = len(away) == len(found)
    return found

  async def _all(self, requests: Sequence[Request]) -> list[Reply | Exception]:
    openai = library()
    address, key = self._secret
    client = openai.AsyncOpenAI(
      base_url=address,
      api_key=key or "none",
      max_retries=0,  # The runner asks again.
      timeout=openai.Timeout(self._timeout, connect=_CONNECT),
    )
    # All of it first: what it takes is no part of a request's time.
    bodies = [self._body(request) for request in requests]
    async with client:
      return list(
        await asyncio.gather(*(self._one(client, body) for body in bodies))
      )

  def _body(self, request: Request) -> dict[str, Any] | UserError:
    """Makes what is sent, or says what is wrong with it."""
    try:
      options = self._merged(request.ask.options)
      messages = [
        _plain(message, request.name, self._frames)
        for message in request.ask.messages
      ]
    except UserError as error:
      return error
    own = {}
    if self._seed is not None:
      named = f"{self._seed}\n{request.name}".encode()
      own["seed"] = zlib.crc32(named) >> 1
    return {
      "model": self._model,
      "messages": messages,
      "max_tokens": options["length"],
      "temperature": options["temperature"],
      "top_p": options["top_p"],
      **own,
    }

  async def _one(
    self, client: Any, body: dict[str, Any] | UserError
  ) -> Reply | Exception:
    """Asks once; whatever goes wrong is this request's."""
    openai = library()
    if isinstance(body, UserError):
      return body
    try:
      return await asyncio.wait_for(self._send(client, body), self._timeout)
    except (TimeoutError, openai.APITimeoutError):
      return TimeoutError(
        f"no reply of {self.address} within {self._timeout:g} s"
      )
    except openai.APIConnectionError as error:
      reason = self._clean(error.__cause__ or error)
      return ConnectionError(f"{self.address} can't be reached: {reason}")
    except openai.APIStatusError as error:
      kind = UserError if error.status_code in _FINAL else RuntimeError
      return kind(f"{self.address} refused it: {self._clean(error)}")
    except Exception as error:
      found = f"{type(error).__name__}: {self._clean(error)}"
      return RuntimeError(f"{self.address} sent no chat completion: {found}")

  async def _send(self, client: Any, body: Mapping[str, Any]) -> Reply:
    found = await client.chat.completions.create(**body)
    (choice,) = found.choices
    text, usage = choice.message.content, found.usage
    if not isinstance(text, str):
      raise TypeError(f"expected a text, found {text!r:.80}")
    return Reply(
      text,
      prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
      completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
      ended=choice.finish_reason != "length",
    )

  def _merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(self._options))
    if unknown:
      raise UserError(
        f"expected options among {', '.join(sorted(self._options))}, found"
        f" {', '.join(unknown)}; leave it out"
      )
    return self._options | dict(options)

  def _clean(self, error: BaseException) -> str:
    """Returns an error's text in one short line, without the secrets."""
    text = " ".join(str(error).split())
    for secret, instead in zip(
      self._secret, (self.address, "KEY"), strict=True
    ):
      text = text.replace(secret, instead) if secret else text
    return text[:200]


def _plain(
  message: Mapping[str, Any], name: str, frames: int
) -> dict[str, Any]:
  """Returns a message as it is sent: one text, or parts where it has pictures.

  Raises:
    UserError: if it has a picture or video that can't be read, or a video and
      none is to be sent.
  """
  content = message["content"]
  if not isinstance(content, str):
    found = [*parts.each([dict(message)], name)]
    if any(part["type"] != "text" for part in found):
      content = [one for part in found for one in _sent(part, name, frames)]
    else:
      content = "\n".join(part["text"] for part in found)
  return {"role": message["role"], "content": content}


def _sent(
  part: Mapping[str, Any], name: str, frames: int
) -> Iterator[dict[str, Any]]:
  """Yields a part as it is sent: a text, a picture, or a video's frames."""
  if part["type"] == "text":
    yield {"type": "text", "text": part["text"]}
    return
  source = parts.source(part, name)
  if part["type"] == "image":
    yield _image(pictures.read(source, name))
    return
  if not frames:
    raise UserError(
      f"{name}: expected messages of texts and pictures for a server, found one"
      " with video; set `frames` to the most frames of it that are sent"
    )
  clip = videos.read(
    source,
    name,
    lambda total, rate: np.array(spread(total, frames)),
    parts.fps(part, name) or 1.0,  # Their times aren't sent.
  )
  for index in spread(len(clip.frames), frames):
    yield _image(Image.fromarray(clip.frames[index]))


def _image(picture: Image.Image) -> dict[str, Any]:
  """Returns a picture as it is sent, as PNG."""
  file = io.BytesIO()
  picture.save(file, "PNG")
  data = base64.b64encode(file.getvalue()).decode()
  url = f"data:image/png;base64,{data}"
  return {"type": "image_url", "image_url": {"url": url}}


def from_environment(variable: str, what: str) -> str:
  """Reads an address from the environment.

  Raises:
    UserError: if it isn't there.
  """
  found = os.environ.get(variable, "")
  if not found:
    raise UserError(
      f"expected {what} in the environment variable {variable}, found none; set"
      f" it, such as {variable}=http://127.0.0.1:8000/v1"
    )
  return found
