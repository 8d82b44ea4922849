"""Every notebook runs from top to bottom, in a kernel, with small sizes."""

import os
import pathlib
import sys

import nbclient
import nbformat
import pytest
import runs

NOTEBOOKS = sorted((runs.ROOT / "colabs").glob("*"))
# What stands behind a notebook's parameters; `folder` is a temporary one.
SMALLER = {
  "add_a_method": ["steps = 2", "prompts = 8", "questions = 16"],
  "attention": ["steps = 2", "prompts = 8", "questions = 16", "compared = 4"],
  "diffusion_caches": [
    *("steps = 2", "pictures = 4", "fewer = [7]", "densities = [0.5]"),
  ],
  "lora": ["steps = 2", "prompts = 8", "questions = 16"],
  "quick_start": ["steps = 2", "prompts = 8", "questions = 16"],
  "your_own_data": ["steps = 2", "prompts = 8", "pictures = 16"],
}
# Smaller than by default as well: evaluations, a model of pictures. A program
# less, and the layers in a scan, as in conftest.
DEFAULTS = """
from mmrl import config
from mmrl.diffusion import config as of_pictures
from mmrl.models import vlm

vlm._UNROLLED_BYTES = 0
known, known_of_pictures = config.get_config, of_pictures.get_config

def get_config():
  found = known()
  found.evaluation.batch, found.shares.every = 16, 0
  return found

def get_config_of_pictures():
  found = known_of_pictures()
  found.train.batch = 2
  found.model.update(size=8, channels=(8, 8), heads=2, groups=4)
  return found

config.get_config = get_config
of_pictures.get_config = get_config_of_pictures
"""


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  return notebook


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[str]:
  return [
    cell.source
    for cell in notebook.cells
    if tag in cell.metadata.get("tags", ())
  ]


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
  notebook, cells = read(path), []
  for cell in notebook.cells:
    tags = cell.metadata.get("tags", ())
    if "install" in tags:
      continue
    cells.append(cell)
    if "parameters" in tags:
      lines = [*SMALLER[path.stem], f"folder = {str(tmp_path / 'run')!r}"]
      cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
      cells.append(nbformat.v4.new_code_cell(DEFAULTS))
  notebook.cells = cells
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(runs.ROOT)}}
  )
  # `python` is this one, as where an environment is activated.
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  client.execute(env=os.environ | {"XLA_FLAGS": runs.FLAGS, "PATH": path})
  kinds = [
    kind
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    for kind in output.get("data", ())
  ]
  assert kinds.count("image/png") >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_it_printed(path):
  """And begins with what it does, how it is installed, and its parameters."""
  notebook = read(path)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None
      # A command that fails so doesn't stop a notebook.
      assert not cell.source.startswith("!")
  first, second, third, *_ = notebook.cells
  assert first.source.startswith("# ")
  assert tagged(notebook, "install") == [second.source]
  assert "%pip install -q -e '.[notebooks]'" in second.source
  assert tagged(notebook, "parameters") == [third.source]
  names = {line.partition(" = ")[0] for line in third.source.splitlines()}
  smaller = {line.partition(" = ")[0] for line in SMALLER[path.stem]}
  assert smaller | {"folder"} == names


def test_there_are_notebooks():
  assert {path.stem for path in NOTEBOOKS} == set(SMALLER)
