"""What is printed about installing brings this library, not another one.

The name `mmrl` belongs to somebody else on PyPI, and `mmrl-jax`, the name of
this distribution, to nobody yet: whoever installs either by its name runs a
stranger's code.
"""

import ast
import functools
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Words of an install command up to what ends it in a text or in a shell.
COMMAND = re.compile(r"pip install((?:\\?\s+(?!&&|#|first\b)[^\s`;|]+)+)")
# A requirement by name; a folder (`.`, `~/mmrl`) has a slash or no letters.
BY_NAME = re.compile(r"(?<![\w/~.+-])['\"]*mmrl(-jax)?(?![\w.-])")
EXTRAS = re.compile(r"'?\.\[([\w,]+)\]")


def files() -> list[pathlib.Path]:
  """All that is in the repository, whatever its kind, but this test."""
  listed = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split("\n")
  found = {ROOT / name for name in listed if name}
  return sorted(p for p in found - {pathlib.Path(__file__)} if p.is_file())


def texts(path: pathlib.Path) -> list[str]:
  """A file's text; of Python the strings, too, put together as they run."""
  try:
    text = path.read_text("utf-8")
  except UnicodeDecodeError:
    return []
  if path.suffix != ".py":
    return [text]
  nodes = ast.walk(ast.parse(text))
  return [text] + [
    node.value
    for node in nodes
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  ]


def commands(text: str) -> list[str]:
  """Arguments of each `pip install` of a text."""
  return [" ".join(one.split()) for one in COMMAND.findall(text)]


def wrong(text: str) -> list[str]:
  """What of a text names this library as a package to install."""
  named = [one for one in commands(text) if BY_NAME.search(one)]
  # An extra behind the name is a requirement, wherever it stands.
  return named + re.findall(r"(?<![\w/])mmrl(?:-jax)?\[\w+", text)


@functools.cache
def all_texts() -> list[tuple[str, str]]:
  return [
    (str(p.relative_to(ROOT)), text) for p in files() for text in texts(p)
  ]


def extras() -> set[str]:
  """Those of setup.py."""
  tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
  (found,) = (
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == "extras_require"
  )
  return {*ast.literal_eval(found)}


@pytest.mark.full
def test_no_text_installs_it_by_its_name():
  assert [(p, wrong(text)) for p, text in all_texts() if wrong(text)] == []


@pytest.mark.full
def test_extras_of_commands_are_there():
  """There are commands in docs, in notebooks and in error messages."""
  found = [
    (path, extra)
    for path, text in all_texts()
    for one in commands(text)
    for names in EXTRAS.findall(one)
    for extra in names.split(",")
  ]
  assert {extra for _, extra in found} <= extras()
  for path in ("README.md", "CONTRIBUTING.md", "mmrl/rewards/words.py"):
    assert path in {p for p, _ in found}
  assert "colabs/attention.ipynb" in {p for p, _ in found}


def test_the_distribution_has_a_name_of_its_own():
  text = (ROOT / "setup.py").read_text("utf-8")
  assert re.findall(r'\bname="(.*)"', text) == ["mmrl-jax"]


@pytest.mark.parametrize(
  "text",
  [
    "pip install mmrl",
    "`pip install mmrl` first",
    "pip install -U 'mmrl[gcs]'",
    "run pip install 'mmrl-jax[gcs]'",
    "%pip install \\\n  mmrl==0.1",
    "needs mmrl[gcs]",
    '["install", "mmrl[tpu]"]',
  ],
)
def test_a_command_by_name_is_found(text):
  assert wrong(text)


@pytest.mark.parametrize(
  "text",
  [
    "pip install -e '.[examples]' && python -m mmrl.train --config x",
    "pip install -e .[gcs]` and import mmrl",
    "uv pip install --python $venv/bin/python -e ~/mmrl'[tpu]'",
    "[/home/mmrl[tpu]]",
  ],
)
def test_others_are_not(text):
  assert not wrong(text)
