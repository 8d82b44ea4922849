"""Command lines of experiments: where they write is checked at once."""

import os
import pathlib
import sys

import pytest

from experiments import arguments
from mmrl.errors import UserError
from mmrl.machines import signals

KINDS = {"folder": arguments.output_folder, "file": arguments.output_file}


def parse(monkeypatch, kind: str, name: object) -> pathlib.Path:
  parser = arguments.Parser("doc")
  parser.add_argument("--output", required=True, type=KINDS[kind])
  monkeypatch.setattr(sys, "argv", ["command", "--output", str(name)])
  return parser.parse().output


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_taken_and_what_is_in_the_way_is_named(
  kind, tmp_path, monkeypatch, capsys
):
  for name in ("new", "a/b/new"):
    assert parse(monkeypatch, kind, tmp_path / name) == tmp_path / name
  assert not [*tmp_path.iterdir()]
  (tmp_path / "plain").write_text("")
  refused = {tmp_path / "plain" / "x": "plain is no folder"}
  if kind == "file":
    assert parse(monkeypatch, kind, tmp_path / "plain") == tmp_path / "plain"
    refused[tmp_path] = "add a file's name"
  else:
    assert parse(monkeypatch, kind, tmp_path) == tmp_path
    refused[tmp_path / "plain"] = "plain is no folder"
  if os.getuid():  # Whoever may do everything may write there, too.
    (tmp_path / "held").mkdir(mode=0o500)
    refused[tmp_path / "held" / "x"] = "held may not be written to"
  for name, message in refused.items():
    with pytest.raises(SystemExit) as error:
      parse(monkeypatch, kind, name)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: argument --output: expected")
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
  "error, status, line",
  [
    (UserError("expected a\n b"), 2, "error: expected a b\n"),
    (signals.Preempted("stopped by SIGTERM"), 75, "stopped by SIGTERM\n"),
    (KeyboardInterrupt(), 130, "ended by ctrl-C\n"),
  ],
)
def test_an_end_is_a_line_and_a_status(error, status, line, capsys):
  def main():
    raise error

  with pytest.raises(SystemExit) as stopped:
    arguments.run(main)
  assert stopped.value.code == status
  assert capsys.readouterr().err == line
