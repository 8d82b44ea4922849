"""A model whose replies are written down."""

from collections.abc import Callable, Mapping, Sequence

from mmrl.errors import UserError
from mmrl.strategies.ask import Ask, Reply, Request, written

Script = Mapping[str, str] | Callable[[Ask], str | Reply]


class Scripted:
  """Replies from a table or by a function; a token is a word.

  Attributes:
    in_flight: most requests of a call.
    calls: names of the requests of every call so far.
  """

  def __init__(self, script: Script, *, in_flight: int = 1024):
    """Takes the script.

    Args:
      script: the texts of a conversation, as `written` returns them, to the
        reply; or a function of what was asked, which may raise.
      in_flight: most requests of a call.
    """
    self.in_flight = in_flight
    self.calls: list[list[str]] = []
    self._script = script

  def __call__(self, requests: Sequence[Request]) -> list[Reply | Exception]:
    """Answers each request by itself; see `Responder`."""
    self.calls.append([request.name for request in requests])
    return [self._one(request.ask) for request in requests]

  def _one(self, ask: Ask) -> Reply | Exception:
    asked = written(ask.messages)
    try:
      found = self._look_up(ask, asked)
    except Exception as error:
      return error
    if isinstance(found, Reply):
      return found
    return Reply(found, len(asked.split()), len(found.split()))

  def _look_up(self, ask: Ask, asked: str) -> str | Reply:
    if callable(self._script):
      found = self._script(ask)
      if not isinstance(found, str | Reply):
        raise UserError(f"expected a reply of the script, found {found!r:.80}")
      return found
    if asked not in self._script:
      raise UserError(
        f"expected a question of the script, found {asked!r:.80}; add it"
      )
    return self._script[asked]
