"""x."""

ACCEPTED: dict[str, str] = {}
