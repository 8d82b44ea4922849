"""--help of every command, and what is said about a misspelt flag or field."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest
import runs
from small_models import first

from mmrl import __main__ as list_of_commands
from mmrl import config as config_lib
from mmrl import config_file
from mmrl import help as help_lib
from mmrl.diffusion import config as diffusion_config
from mmrl.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [f"mmrl.{name}" for name in list_of_commands.COMMANDS]
EXPERIMENTS = [
  f"experiments.{name}"
  for name in (
    *("asking", "attention_share", "causal_halbench", "causal_pictures"),
    *("compare", "evidence", "experts", "extrapolation", "look_then_answer"),
    *("latent_model", "scene_pairs", "second_looks"),
    *("stages", "tiny_model", "tiny_worlds", "vision_negatives"),
  )
]
# Runs modules, each in a copy of this process, into which what all of them take
# is imported; each prints which of the slow ones it has imported.
WATCHED = """
import json, os, runpy, sys
from ml_collections import config_flags
folder, jobs = sys.argv[1], json.loads(sys.argv[2])
for number, sys.argv in enumerate(jobs):
  if child := os.fork():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(f"{folder}/{number}.status", "w").write(str(status))
    continue
  for place, name in ((1, "out"), (2, "err")):
    file = f"{folder}/{number}.{name}"
    os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), place)
  try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
  finally:
    slow = {"jax", "flax", "transformers", "orbax", "grain"}
    print("imported", *sorted(slow & {*sys.modules}))
  break
"""


def is_command(path: pathlib.Path) -> bool:
  """Whether a module does something where it is run."""
  tests = [
    node.test
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.If)
  ]
  return any("__main__" in ast.unparse(test) for test in tests)


def test_the_list_has_every_command():
  """And no other: modules and packages that can be run."""
  found = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "mmrl").rglob("*.py")
    if is_command(path)
  }
  assert {name.removesuffix(".__main__") for name in found} == {
    "mmrl",
    *COMMANDS,
  }
  found = {
    f"experiments.{path.stem}"
    for path in (ROOT / "experiments").glob("*.py")
    if is_command(path)
  }
  assert found == {*EXPERIMENTS}


def ask(folder: pathlib.Path, jobs: list[list[str]]):
  """Status, output and errors of each job, a module and its arguments."""
  subprocess.run(
    [sys.executable, "-c", WATCHED, str(folder), json.dumps(jobs)],
    cwd=ROOT,
    check=True,
    timeout=300,
  )
  return [
    [(folder / f"{number}.{name}").read_text() for name in OUTCOME]
    for number in range(len(jobs))
  ]


OUTCOME = "status", "out", "err"
MODULES = ["mmrl", *COMMANDS, *EXPERIMENTS]


@pytest.fixture(scope="module")
def helped(tmp_path_factory):
  jobs = [[module, "--help"] for module in MODULES]
  return dict(
    zip(MODULES, ask(tmp_path_factory.mktemp("h"), jobs), strict=True)
  )


@pytest.mark.parametrize("module", MODULES)
def test_help_is_answered_before_jax_is_imported(helped, module):
  status, output, error = helped[module]
  assert status == "0" and error == ""
  text, _, imported = output.rpartition("imported")
  assert imported.split() == []
  assert f"python -m {module}" in text
  # What the first lines call it with is explained below them.
  first, _, below = text.partition("\n\n")
  for flag in re.findall(r" (--[\w-]+)", first):
    assert re.search(rf"\n  {flag}\b", below)


def test_flags_have_meaning_and_default(helped):
  _, text, _ = helped["mmrl.sample"]
  assert "--length (default 128)\n      Most tokens of the answer." in text
  assert "--model (required)\n" in text
  # Those of other commands aren't there.
  assert "--workdir" not in text and "--help-config" not in text


@pytest.mark.parametrize("modules", first(MODULES[1:2], MODULES[2:]))
def test_a_misspelt_flag_is_answered_before_jax_is_imported(tmp_path, modules):
  jobs = [[module, "--hepl"] for module in modules]
  for status, output, error in ask(tmp_path, jobs):
    assert status == "2", error
    assert output.split() == ["imported"]
    assert error.startswith("error: expected a")
    assert error.count("\n") == 1 and "--hepl" in error


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["trian"], "found trian; the nearest is train"),
    (["train", "--wrkdir=x"], "found --wrkdir; the nearest is --workdir"),
    (["plan", "--workdir=x"], "expected a flag of this command, found --workd"),
    (["train", "x"], "expected flags only, found 'x'"),
    (["train"], "expected --config, found none"),
    (["crosstable", "x"], "expected RUN_A RUN_B and flags, found 'x'; see"),
    (["crosstable", "a", "b", "c"], "and flags, found 'a' 'b' 'c'; see --help"),
    (["train", "--config.seed=1"], "expected --config=FILE before --config.se"),
    (["train", "--help-config=rolout"], "found 'rolout'; the nearest is roll"),
  ],
)
def test_a_command_by_its_name(arguments, message):
  found = runs.command("mmrl", *arguments)
  assert found.returncode == 2
  assert found.stderr.startswith("error: ") and message in found.stderr
  assert found.stderr.count("\n") == 1


def test_fields_of_a_prefix_are_printed():
  """As it is typed: in two words, as a flag, or as a field."""
  printed = runs.command("mmrl", "train", "--help-config", "checkpoint").stdout
  assert "config.checkpoint.keep = 2\n    number of the newest" in printed
  assert "config.rollout" not in printed
  for prefix in ("config.checkpoint", "--config.checkpoint"):
    assert help_lib.config(prefix) == printed


@pytest.mark.parametrize("base", [config_lib, diffusion_config])
def test_every_field_has_a_meaning(base):
  """But for entries of tables whose names are one's own."""
  free = tuple(f"{table}." for table in config_lib.TABLES)
  found = help_lib.fields(base)
  without = [one.path for one in found if not one.meaning]
  assert [path for path in without if not path.startswith(free)] == []
  text = help_lib.config("", base)
  for one in found:
    assert f"config.{one.path}" in text


@pytest.mark.parametrize("base", [config_lib, diffusion_config])
def test_every_comment_is_the_meaning_of_a_field(base):
  """None is lost because it stands where no field does."""
  source = pathlib.Path(base.__file__).read_text("utf-8")
  body = source.split("def get_config")[1].split("\ndef ")[0]
  words = [
    word for line in body.split("\n") for word in line.partition("#")[2].split()
  ]
  meanings = " ".join(help_lib.meanings(base).values()).split()
  assert sorted(words) == sorted(meanings)


def test_entries_of_free_tables_may_go():
  """But not the model that is trained, though another table has its name."""
  config = config_lib.get_config()
  del config.losses["policy"], config.rewards["format"]
  config_lib.check_fields(config)
  del config.models["policy"]
  with pytest.raises(UserError, match="config.models.policy: expected this"):
    config_lib.check_fields(config)


def load(tmp_path, text: str, name: str = "c.py"):
  (tmp_path / "c.py").write_text(text)
  with pytest.raises(UserError) as error:
    config_lib.check_fields(config_file.load(str(tmp_path / name)))
  message = str(error.value)
  assert "\n" not in message and "\\" not in message
  return message.replace(f"{tmp_path}/", "")


BEGIN = """from mmrl import config as config_lib
def get_config(arm="a"):
  config = config_lib.get_config()
"""


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (
      "config.train.stpes = 3",
      "config.train.stpes: expected a field of the config, found none of name"
      " stpes; the nearest is steps; --help-config lists them",
    ),
    (
      "config.trian.steps = 3",
      "c.py:4: expected a field of the config, found none of name trian; the"
      " nearest is train; --help-config lists them",
    ),
    ("config.data['tset'].x = 1", "c.py:4: expected a field of the config, fo"),
    (
      "config.data.test.split = 'x'",
      "c.py:4: expected a field of the config, found none of name test;"
      " --help-config lists them; config.data.test is now config.eval",
    ),
    ("config.models.policy.dtpye = 'x'", "config.models.policy.dtpye: expecte"),
    ("config.mesh = {'data': 1}", "config.mesh.fsdp: expected this field"),
    ("config.mesh = 4", "c.py:4: TypeError: Could not override field 'me"),
    ("config.train.steps = '4'", "c.py:4: TypeError: "),
    ("config.data.lengths = ('a',)", "config.data.lengths: expected int, fou"),
    ("config.data.lengths = (True,)", "config.data.lengths: expected int, fo"),
    (
      "with config.unlocked(): del config['seed']",
      "config.seed: expected this",
    ),
    (
      "raise ValueError('expected :a, found :b')",
      "c.py:4: expected :a, found ",
    ),
    ("nonesuch()", "c.py:4: NameError: name 'nonesuch' is not defined"),
    ("import nonesuch", "c.py:4: ModuleNotFoundError: No module named"),
    ("exit(3)", "c.py:4: SystemExit: 3"),
    ("{}['a']", "c.py:4: KeyError: 'a'"),
    ("x = (", "c.py:4: SyntaxError: '(' was never closed"),
    ("return 3", "expected get_config of "),
  ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, line, message):
  text = f"{BEGIN}  {line}\n  return config\n"
  assert load(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    (
      "d.py",
      "",
      "expected --config to be a file with get_config, found no fil",
    ),
    ("d.py", "", "; the nearest is c.py"),
    ("", "", "found a folder at"),
    ("c.json", "", "write one that returns mmrl.config.get_config()"),
    ("c.py", "", "expected a function or class get_config in c.py, found none"),
    ("c.py", "def get_cnofig(): 1", "found get_cnofig; the nearest is get_cno"),
    ("c.py", "get_config = 3", "to be a function or class, found int"),
    ("c.py:a", "def get_config(): 1", "takes no argument; found c.py:a"),
    (
      "c.py",
      "def get_config(arm): 1",
      "=c.py:ARGUMENT, as its get_config take",
    ),
    ("c.py", "1 / 0", "c.py:1: ZeroDivisionError: division by zero"),
  ],
)
def test_a_config_file_that_is_none_is_one_line(tmp_path, name, text, message):
  assert message in load(tmp_path, text, name)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("train.stpes=3", "config.train.stpes: .* the nearest is steps"),
    ("trian.steps=3", "config.trian: .* the nearest is train"),
    ("rollout.answers.x=3", "config.rollout.answers is a value, 8"),
    ("losses.kll.weight=3", "config.losses.kll: .* the nearest is kl"),
    ("data.test.split=x", "data.test is now .*benchmarks.test.data"),
    ("evaluation.form=answer", "form is now .*test.scores.format.form"),
  ],
)
def test_a_misspelt_field_of_the_command_line(argument, message):
  for flag in (f"--config.{argument}", f"-config.{argument}"):
    with pytest.raises(UserError, match=message) as error:
      config_file.check_overrides([flag], config_lib.get_config())
    assert "\n" not in str(error.value) and "\\" not in str(error.value)


@pytest.mark.parametrize(
  "argument",
  [
    "--config.data.lengths[0]=3",
    "--noconfig.models.policy.remat",
    "--config=x",
  ],
)
def test_a_field_that_is_there(argument):
  config_file.check_overrides([argument], config_lib.get_config())


def test_compare_refuses_an_arm_before_it_runs(tmp_path):
  cases = (
    (["--arms", "quikstart:grpo"], "found 'quikstart:grpo'; the nearest is qu"),
    (["--arms", "quickstart:gpo"], "quickstart.py:gpo: expected :ral or :grpo"),
    (["--numbers", "tets/accuracy"], "found 'tets/accuracy'; the nearest is t"),
  )
  command = ["experiments.compare", f"--output={tmp_path}"]
  found = ask(tmp_path, [command + arguments for arguments, _ in cases])
  for (status, output, error), (_, message) in zip(found, cases, strict=True):
    assert status == "2" and message in error
    assert error.count("\n") == 1
    assert output.split() == ["imported"]


def test_another_kind_of_config_has_tables_that_moved_here():
  """Its `model` is a table of its own, and what is wrong is a field of that."""
  config = diffusion_config.get_config()
  with pytest.raises(UserError) as error:
    config_file.check_overrides(["--config.model.sizes=3"], config)
  assert "nearest is size" in str(error.value)
  assert "is now" not in str(error.value)
