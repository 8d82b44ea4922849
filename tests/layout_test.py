"""The house: who imports whom, and how long things are."""

import ast
import collections
import functools
import pathlib
import statistics

ROOT = pathlib.Path(__file__).parents[1] / "mmrl"
MODULES = 12  # of a package
MODULE_LINES, MEDIAN_LINES, FUNCTION_LINES = 400, 170, 70
# The room of the train loop, from which models of other methods are to move;
# formats have a module each.
LARGER = {"train": 13, "data/formats": 13}


@functools.cache
def trees() -> dict[pathlib.Path, tuple[ast.Module, int]]:
  """Modules, and how many lines each has."""
  found = {}
  for path in sorted(ROOT.rglob("*.py")):
    text = path.read_text("utf-8")
    found[path.relative_to(ROOT)] = ast.parse(text), text.count("\n")
  return found


def room(path: pathlib.Path) -> str:
  """The package below mmrl, or the module that stands beside packages."""
  return path.parts[0].removesuffix(".py")


@functools.cache
def imported() -> dict[str, set[str]]:
  """Rooms that each room imports, wherever the import stands."""
  found = collections.defaultdict(set)
  for path, (tree, _) in trees().items():
    for node in ast.walk(tree):
      if not isinstance(node, ast.ImportFrom):
        continue
      root, *names = (node.module or "").split(".")
      if root == "mmrl":
        names = names[:1] or [alias.name for alias in node.names]
        found[room(path)] |= {*names} - {room(path)}
  return found


def test_rooms_import_each_other_one_way():
  remaining = collections.defaultdict(set, imported())
  rooms = set(remaining).union(*remaining.values())
  order = []
  while len(order) < len(rooms):
    free = [r for r in rooms - {*order} if remaining[r] <= {*order}]
    assert free, f"a cycle among {sorted(rooms - {*order})}"
    order += free
  # Any of them can be used without training.
  assert order.index("train") > order.index("rollouts")


def test_the_frame_stands_above_the_slots():
  """No slot knows how it is trained."""
  for name in ("losses", "advantages", "rewards", "token_weights", "probes"):
    known = imported()[name]
    assert not known & {"train", "rollouts", "workdir", "data", "hub"}, name


def test_files_that_are_no_modules_are_installed():
  """setup.py names each of them, by the package that it lies in."""
  tree = ast.parse((ROOT.parent / "setup.py").read_text("utf-8"))
  (patterns,) = (
    ast.literal_eval(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.keyword) and node.arg == "package_data"
  )
  installed = {
    path
    for package, globs in patterns.items()
    for pattern in globs
    for path in (ROOT.parent / package.replace(".", "/")).glob(pattern)
  }
  found = {path for path in ROOT.rglob("*") if path.is_file()}
  found = {path for path in found if path.suffix not in (".py", ".pyc")}
  assert found and found == installed


def test_packages_are_small():
  counted = collections.Counter(path.parent.as_posix() for path in trees())
  counted.pop(".")
  for package, count in counted.items():
    assert count <= LARGER.get(package, MODULES), package


def test_modules_and_functions_are_short():
  lengths = {path: lines for path, (_, lines) in trees().items()}
  assert {p: n for p, n in lengths.items() if n > MODULE_LINES} == {}
  bodies = [n for p, n in lengths.items() if p.name != "__init__.py"]
  assert statistics.median(bodies) <= MEDIAN_LINES
  functions = [
    (path.as_posix(), node.name, node.end_lineno - node.lineno + 1)
    for path, (tree, _) in trees().items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
    if room(path) in ("train", "rollouts")
  ]
  assert [one for one in functions if one[-1] > FUNCTION_LINES] == []
