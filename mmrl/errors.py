"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
  """A user's mistake: one line with what was expected, found, and to do.

  Commands print it without a traceback and exit with status 2; a traceback is
  reserved for bugs.
  """
