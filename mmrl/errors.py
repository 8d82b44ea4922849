"""Exception for mistakes that the user can fix."""

from collections.abc import Iterator
import contextlib


class UserError(ValueError):
  """A user's mistake: one line with what was expected, found, and to do.

  Commands print it without a traceback and exit with status 2; a traceback is
  reserved for bugs.
  """


@contextlib.contextmanager
def of_field(where: str) -> Iterator[None]:
  """Prefixes a `UserError` raised inside with a field of the config.

  One that begins with the field, or with a part of it, stays as it is.
  """
  try:
    yield
  except UserError as error:
    if str(error).startswith(where):
      raise
    raise UserError(f"{where}: {error}") from error
