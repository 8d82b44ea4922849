"""The scripts of tpu_scripts/, against a gcloud that only records its calls."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "tpu_scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.sh"))
POD = {
  "TPU_NAME": "pod",
  "ZONE": "us-west4-a",
  "TYPE": "v5litepod-16",
  "RUNTIME": "v2-alpha-tpuv5-lite",
}
ZONE = "--zone=us-west4-a"
WORKER_0 = "--worker=0", ZONE
TRAIN_FLAGS = ["--config", "experiments/x.py", "--workdir", "gs://bucket/run"]
TRAIN = "worker.sh"  # A word of the call that starts the training.

# Before a command that must feel Ctrl-C: tests may run with SIGINT ignored.
INTERRUPTIBLE = [
  sys.executable,
  "-c",
  "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
  "os.execv(sys.argv[1], sys.argv[1:])",
]

# The workers are Linux machines, and here scripts meant for them run for real.
pytestmark = [
  pytest.mark.full,
  pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

# The stub takes what it should do from the first entry of plan.json whose words
# are all in the call, and removes the entry. Without one, what is asked for
# works: ssh and scp act on a directory that stands for a worker's home.
GCLOUD = """#!{python} -IS
import json, os, pathlib, shutil, subprocess, sys, time
root = pathlib.Path({root!r})
call = sys.argv[1:]
with open(root / "calls.jsonl", "a") as file:
  print(json.dumps(call), file=file)
text = " ".join(call)
plan = json.loads((root / "plan.json").read_text())
for entry in plan:
  if all(word in text for word in entry["words"]):
    plan.remove(entry)
    (root / "plan.json").write_text(json.dumps(plan))
    print(entry["stdout"])
    print(entry["stderr"], file=sys.stderr)
    try:
      time.sleep(entry["seconds"])
    except KeyboardInterrupt:
      sys.exit(1)
    sys.exit(entry["status"])
home = root / "worker"
if "ssh" in call:
  command = next(a for a in call if a.startswith("--command="))
  # Spaces separate what gcloud hands to ssh, which joins it again.
  command = " ".join(command.removeprefix("--command=").split(" "))
  # Of the caller's variables a worker sees none; STATUS is the test's.
  seen = {{
    "HOME": str(home),
    "PATH": os.environ["PATH"],
    "STATUS": os.environ.get("STATUS", "0"),
  }}
  sys.exit(subprocess.run(["bash", "-c", command], env=seen).returncode)
if "scp" in call and "--worker=all" in call:
  shutil.copy(call[4], home / call[5].split(":")[1])
if "describe" in call:
  print("ACTIVE" if "queued-resources" in call else "READY")
"""

# Stands for the programs that record how they were called.
RECORDER = """#!{python} -IS
import json, os, pathlib, sys
with open({path!r}, "a") as file:
  print(json.dumps(sys.argv[1:]), file=file)
print("hello from", pathlib.Path(sys.argv[0]).name)
if sys.argv[1] == "venv":
  (pathlib.Path(sys.argv[-1]) / "bin").mkdir(parents=True)
  (pathlib.Path(sys.argv[-1]) / "bin/python").touch(0o755)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


class Pod:
  """A project with the scripts, a stub gcloud and one worker's home."""

  def __init__(self, root):
    self.root = root
    self.worker = root / "worker"
    self.project = root / "project"
    self.environment = {
      "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
      "HOME": str(root / "home"),
      "RESTART_PAUSE": "0",
      "QUEUE_PAUSE": "0",
      **POD,
    }
    shutil.copytree(SCRIPTS, self.project / "tpu_scripts")
    shutil.copytree(SCRIPTS, self.worker / "mmrl/tpu_scripts")
    (root / "bin").mkdir()
    (root / "home").mkdir()
    self._write(
      "bin/gcloud", GCLOUD.format(python=sys.executable, root=str(root))
    )
    self._write("worker/mmrl-venv/bin/python", self._recorder("python.jsonl"))
    (self.worker / "mmrl-venv/bin/activate").write_text(
      'PATH="$HOME/mmrl-venv/bin:$PATH"\n'
    )
    self.plan()

  def _write(self, name, text):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)

  def _recorder(self, name):
    path = str(self.root / name)
    return RECORDER.format(python=sys.executable, path=path)

  def with_sleep(self):
    """Lets every pause end at once, recorded in sleep.jsonl."""
    self._write("bin/sleep", self._recorder("sleep.jsonl"))

  def with_uv(self):
    """Puts a recording uv on the worker, and takes its environment away."""
    self._write("worker/.local/bin/uv", self._recorder("uv.jsonl"))
    shutil.rmtree(self.worker / "mmrl-venv")

  def plan(self, *entries):
    """Sets what gcloud does: (words of the call, status, stdout, stderr)."""
    keys = ("words", "status", "stdout", "stderr", "seconds")
    defaults = ([], 0, "", "", 0)
    (self.root / "plan.json").write_text(
      json.dumps(
        [
          dict(zip(keys, (*entry, *defaults[len(entry) :]), strict=True))
          for entry in entries
        ]
      )
    )

  def command(self, script, arguments, environment):
    merged = {**self.environment, **environment}
    return {
      "args": [str(self.project / "tpu_scripts" / script), *arguments],
      "env": {k: v for k, v in merged.items() if v is not None},
      "cwd": self.root,
      "text": True,
      "stdin": subprocess.DEVNULL,
      "stdout": subprocess.PIPE,
      "stderr": subprocess.PIPE,
    }

  def run(self, script, *arguments, **environment):
    return subprocess.run(
      **self.command(script, arguments, environment), check=False, timeout=60
    )

  def lines(self, name):
    path = self.root / name
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def calls(self):
    return self.lines("calls.jsonl")

  def steps(self):
    """One word for each call: what it did."""
    steps = []
    for call in self.calls():
      step = call[3]
      if step == "ssh":
        step = "train" if TRAIN in " ".join(call) else "install"
      steps.append(step)
    return steps


@pytest.fixture
def pod(tmp_path):
  return Pod(tmp_path)


def one_line(result):
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1, result.stderr
  return lines[0]


def tpu_vm(*arguments):
  return ["compute", "tpus", "tpu-vm", *arguments]


def queued(*arguments):
  return ["compute", "tpus", "queued-resources", *arguments]


def create(spot, node, version):
  return [
    *("create", "pod", "--accelerator-type=v5litepod-16"),
    *(*spot, *node, f"--{version}=v2-alpha-tpuv5-lite", ZONE),
  ]


@pytest.mark.parametrize(
  ("mode", "spot"), [(None, []), ("on-demand", []), ("spot", ["--spot"])]
)
def test_create_now(pod, mode, spot):
  assert pod.run("create.sh", MODE=mode).returncode == 0
  assert pod.calls() == [tpu_vm(*create(spot, [], "version"))]


@pytest.mark.parametrize(
  ("mode", "spot"), [("queued", []), ("queued-spot", ["--spot"])]
)
def test_create_queued_waits_for_the_tpu(pod, mode, spot):
  pod.plan(
    (["describe"], 1, "", "NOT_FOUND"),
    (["describe"], 0, "WAITING_FOR_RESOURCES"),
    (["describe"], 1, "", "no network"),
  )
  assert pod.run("create.sh", MODE=mode).returncode == 0
  describe = queued("describe", "pod", "--format=value(state.state)", ZONE)
  made = queued(*create(spot, ["--node-id=pod"], "runtime-version"))
  assert pod.calls() == [describe, made, *[describe] * 3]


@pytest.mark.parametrize(("pause", "seconds"), [(None, "30"), ("7", "7")])
@pytest.mark.parametrize(
  ("script", "options", "entry", "name"),
  [
    ("create.sh", {"MODE": "queued"}, (["describe"], 0, "X"), "QUEUE_PAUSE"),
    ("train.sh", {}, ([TRAIN], 75), "RESTART_PAUSE"),
  ],
)
def test_pauses(pod, script, options, entry, name, pause, seconds):
  """Between two looks at a request, without a second one; and two runs."""
  pod.with_sleep()
  pod.plan(entry, entry, *[entry] * (script == "create.sh"))
  result = pod.run(script, "x", **options, **{name: pause})
  assert result.returncode == 0
  assert pod.lines("sleep.jsonl") == [[seconds]] * 2
  assert "create" not in pod.steps()


@pytest.mark.parametrize(
  ("state", "message", "looks"),
  [
    ("WAITING_FOR_RESOURCES", "run create.sh to wait on", 4),
    *[
      (state, f"{state}; run delete.sh", 2) for state in ("FAILED", "SUSPENDED")
    ],
  ],
)
def test_create_queued_gives_up(pod, state, message, looks):
  """After a while, or where the request is lost."""
  pod.plan(*[(["describe"], 0, state)] * 9)
  result = pod.run("create.sh", MODE="queued", QUEUE_POLLS="3")
  assert result.returncode == 1
  assert message in one_line(result)
  assert pod.steps() == ["describe"] * looks


@pytest.mark.parametrize("mode", ["on-demand", "spot", "queued"])
def test_no_quota(pod, mode):
  pod.plan(
    (["describe"], 1),
    ([" create "], 1, "", "ERROR: Quota limit 'TPUS' exceeded"),
  )
  result = pod.run("create.sh", MODE=mode)
  assert result.returncode == 1
  message, remedy = result.stderr.strip().splitlines()
  assert message == "ERROR: Quota limit 'TPUS' exceeded"
  assert remedy.startswith("create.sh: no TPU; ask for quota at")
  assert pod.steps().count("create") == 1
  assert pod.steps()[-1] == "create"


def test_project_is_optional(pod):
  pod.run("delete.sh", PROJECT="my project")
  assert pod.calls()[0][-2:] == [ZONE, "--project=my project"]


@pytest.mark.parametrize(
  ("script", "name"),
  [
    (script, name)
    for script in NAMES
    if script not in ("common.sh", "worker.sh")
    for name in (POD if script in ("create.sh", "train.sh") else list(POD)[:2])
  ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_missing_variable(pod, script, name, value):
  result = pod.run(script, "argument", **{name: value})
  assert result.returncode == 2
  line = one_line(result)
  assert line.startswith(
    f"{script}: expected the variable {name}, found none; run: export {name}="
  )
  assert pod.calls() == []


@pytest.mark.parametrize(
  ("script", "options", "message"),
  [
    *[(f"{name}.sh", {}, "expected ") for name in ("run", "train", "fetch")],
    *[("delete.sh", {"MODE": "cheap"}, "queued or queued-spot, found cheap")],
  ],
)
def test_mistaken_arguments(pod, script, options, message):
  result = pod.run(script, **options)
  assert result.returncode == 2
  line = one_line(result)
  assert line.startswith(f"{script}: ") and message in line
  assert pod.calls() == []


def test_gcloud_is_not_installed(pod):
  (pod.root / "bin/gcloud").unlink()
  for tool in ("bash", "dirname"):
    (pod.root / "bin" / tool).symlink_to(shutil.which(tool))
  result = pod.run("delete.sh", PATH=str(pod.root / "bin"))
  assert result.returncode == 2
  assert "expected gcloud, found none" in one_line(result)


def test_run_keeps_the_command_as_it_is(pod):
  arguments = ["a b", "it's", 'a "b"', "$HOME", "*", "x;y|z", "", "two\nlines"]
  result = pod.run("run.sh", "python", "-c", *arguments)
  assert result.returncode == 0
  assert pod.lines("python.jsonl") == [["-c", *arguments]]
  [call] = pod.calls()
  assert call[:5] == tpu_vm("ssh", "pod")
  assert call[5] == "--worker=all"
  assert call[-1] == ZONE


def test_run_shows_the_output_and_adds_it_to_the_log(pod):
  """With errors, and of a command that works in the project."""
  for _ in range(2):
    assert "hello from python" in pod.run("run.sh", "python", "-V").stdout
  pod.run("run.sh", "bash", "-c", "pwd; echo oh >&2")
  log = (pod.worker / "mmrl.log").read_text()
  assert log == "hello from python\n" * 2 + f"{pod.worker / 'mmrl'}\noh\n"


@pytest.mark.parametrize(
  ("script", "words", "status"),
  [
    *[("run.sh", None, status) for status in (1, 2, 75)],
    # Of gcloud: a worker that isn't reached, a file that isn't there.
    ("run.sh", ["python", "-V"], 255),
    ("fetch.sh", ["runs/ral"], 1),
    ("fetch.sh", ["gs://bucket/ral"], 1),
  ],
)
def test_the_status_is_that_of_the_command(pod, script, words, status):
  if words is None:
    result = pod.run(script, "python", "-V", STATUS=str(status))
  else:
    pod.plan(([], status, "", "ERROR: timed out"))
    result = pod.run(script, *words)
    assert "timed out" in result.stderr
  assert result.returncode == status


@pytest.fixture
def checkout(pod):
  """The project as a git checkout with one commit."""
  if not shutil.which("git"):
    pytest.skip("needs git")
  (pod.project / "setup.py").write_text("first")
  pod.with_uv()
  git(pod, "init", "-q")
  commit(pod)
  return pod


def git(pod, *arguments):
  subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
    cwd=pod.project,
    check=True,
    env={**os.environ, "HOME": pod.environment["HOME"]},
  )


def commit(pod):
  git(pod, "add", ".")
  git(pod, "commit", "-qm", "x")


def test_setup_copies_and_installs(checkout):
  result = checkout.run("setup.sh")
  assert (result.returncode, result.stderr) == (0, "")
  copy, install = checkout.calls()
  assert copy[:4] == tpu_vm("scp")
  assert copy[5:] == ["pod:mmrl.tar.gz", "--worker=all", ZONE]
  assert not os.path.exists(copy[4])
  assert install[:6] == tpu_vm("ssh", "pod", "--worker=all")
  assert (checkout.worker / "mmrl/setup.py").read_text() == "first"
  venv = checkout.worker / "mmrl-venv"
  assert checkout.lines("uv.jsonl") == [
    ["venv", "--clear", "--python", "3.11", str(venv)],
    [
      *["pip", "install", "--python", str(venv / "bin/python")],
      *["-e", f"{checkout.worker}/mmrl[tpu]"],
    ],
  ]


def test_setup_twice_brings_the_new_commit_and_keeps_the_rest(checkout):
  assert checkout.run("setup.sh").returncode == 0
  run = checkout.worker / "mmrl/runs/ral"
  run.mkdir(parents=True)
  (checkout.project / "setup.py").write_text("second")
  commit(checkout)
  assert checkout.run("setup.sh", EXTRAS="tpu,examples").returncode == 0
  assert (checkout.worker / "mmrl/setup.py").read_text() == "second"
  assert run.exists()
  commands = checkout.lines("uv.jsonl")
  assert [command[0] for command in commands] == ["venv", "pip", "pip"]
  assert commands[-1][-1].endswith("/mmrl[tpu,examples]")


def test_setup_says_that_changes_are_left_out(checkout):
  (checkout.project / "setup.py").write_text("second")
  result = checkout.run("setup.sh")
  assert result.returncode == 0
  assert "aren't committed" in one_line(result)
  assert (checkout.worker / "mmrl/setup.py").read_text() == "first"


def test_setup_that_fails(checkout):
  """In a copy, in the installation, in what is to be unpacked."""
  checkout.plan((["scp"], 255))
  assert checkout.run("setup.sh").returncode == 255
  assert checkout.steps() == ["scp"]
  assert checkout.run("setup.sh", STATUS="1").returncode == 1
  (checkout.root / "uv.jsonl").unlink()
  shutil.rmtree(checkout.worker / "mmrl")
  (checkout.worker / "mmrl").touch()
  assert checkout.run("setup.sh").returncode == 1
  assert checkout.lines("uv.jsonl") == []


def test_setup_outside_git(pod):
  result = pod.run("setup.sh", GIT_CEILING_DIRECTORIES=str(pod.root))
  assert result.returncode == 2
  assert "expected a git checkout" in result.stderr
  assert pod.calls() == []


def test_train_runs_the_training_on_all_workers(pod):
  flags = [*TRAIN_FLAGS, '--config.name=it\'s "a b"']
  result = pod.run("train.sh", *flags)
  assert (result.returncode, result.stderr) == (0, "")
  assert pod.lines("python.jsonl") == [
    ["-m", "mmrl.train", "--distributed", *flags]
  ]
  assert pod.steps() == ["train"]
  assert "--worker=all" in pod.calls()[0]


def test_train_preempted_is_the_same_command_again(pod):
  pod.plan(([TRAIN], 75), ([TRAIN], 75))
  result = pod.run("train.sh", *TRAIN_FLAGS)
  assert result.returncode == 0
  assert pod.steps() == ["train", "describe", "train", "describe", "train"]
  calls = pod.calls()
  assert calls[0] == calls[2] == calls[4]
  assert calls[1] == tpu_vm("describe", "pod", "--format=value(state)", ZONE)
  assert "status 75, TPU READY; restart 2" in result.stderr


SEEN = (["describe"], 0, "READY")
GONE = (["describe"], 0, "PREEMPTED")
NOT_FOUND = (["describe"], 1, "", "ERROR: NOT_FOUND: Resource was not found")
ENDS = ([TRAIN], 0)
AGAIN = ["train", "describe", "train"]
NEW = ["describe", "delete", "create"]


@pytest.mark.parametrize(
  ("plan", "options", "status", "steps"),
  [
    # Lost on a TPU that is there, or may be: it can't be seen.
    *[([([TRAIN], s), SEEN, ENDS], {}, 0, AGAIN) for s in (1, 137, 255)],
    (
      [([TRAIN], 255), (["describe"], 1, "", "no network"), ENDS],
      *({}, 0, AGAIN),
    ),
    # One that is gone is made anew.
    *[
      (
        [([TRAIN], s), seen, (["delete"], 1), ENDS],
        *({"MODE": "spot"}, 0, ["train", *NEW, "scp", "install", "train"]),
      )
      for s, seen in (
        *((255, GONE), (75, GONE), (1, NOT_FOUND)),
        (255, (["describe"], 0, "TERMINATED")),
      )
    ],
    # A new one whose setup failed is kept.
    (
      [([TRAIN], 255), GONE, (["scp"], 255), ([TRAIN], 75), ENDS],
      *({}, 0, ["train", *NEW, "scp", "describe", "scp", "install", *AGAIN]),
    ),
    # Restarts are bounded, also where there is no quota.
    *[
      (
        [([TRAIN], s), SEEN] * 9,
        *({"MAX_RESTARTS": "3"}, s, [*["train", "describe"] * 3, "train"]),
      )
      for s in (1, 75)
    ],
    (
      [([TRAIN], 255), *[NOT_FOUND, ([" create "], 1, "", "no quota")] * 9],
      *({"MAX_RESTARTS": "2"}, 255, ["train", *NEW * 2]),
    ),
  ],
)
def test_train_that_is_lost(checkout, plan, options, status, steps):
  checkout.plan(*plan)
  result = checkout.run("train.sh", *TRAIN_FLAGS, **options)
  assert result.returncode == status
  assert checkout.steps() == steps
  made = [call for call in checkout.calls() if "create" in call]
  assert all(("--spot" in call) == ("MODE" in options) for call in made)
  assert result.stderr.count("no quota") == (len(made) if status else 0)
  if status:
    last = result.stderr.strip().splitlines()[-1]
    count = options["MAX_RESTARTS"]
    assert last == f"train.sh: gave up after {count} restarts; see logs.sh"


def test_train_does_not_repeat_a_mistake(pod):
  result = pod.run("train.sh", *TRAIN_FLAGS, STATUS="2")
  assert result.returncode == 2
  assert pod.steps() == ["train"]


def test_train_ends_with_ctrl_c(pod):
  pod.plan(([TRAIN], 1, "", "", 30))
  command = pod.command("train.sh", TRAIN_FLAGS, {})
  process = subprocess.Popen(
    **{**command, "args": [*INTERRUPTIBLE, *command["args"]]},
    start_new_session=True,
  )
  deadline = time.monotonic() + 20
  while pod.lines("plan.json") != [[]] and time.monotonic() < deadline:
    time.sleep(0.02)
  time.sleep(0.1)
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=20)
  assert process.returncode == 130
  assert pod.steps() == ["train"]


@pytest.fixture
def earlier(pod):
  """Starts an earlier run on the worker: a bash that does what it's told."""
  processes = []

  def start(name, first):
    process = subprocess.Popen(
      ["bash", "-c", f"{first}; while :; do sleep 0.1; done", name],
      stdout=subprocess.DEVNULL,
    )
    # Reaped as soon as it ends: until then a process counts as running.
    threading.Thread(target=process.wait, daemon=True).start()
    processes.append(process)
    (pod.worker / "mmrl.pid").write_text(f"{process.pid}\n")
    time.sleep(0.2)
    return process

  yield start
  for process in processes:
    process.kill()


@pytest.mark.parametrize(
  ("first", "status"),
  [(":", -signal.SIGTERM), ("trap '' TERM", -signal.SIGKILL)],
)
def test_train_stops_a_run_that_was_left_behind(pod, earlier, first, status):
  process = earlier("mmrl.train", first)
  result = pod.run("train.sh", *TRAIN_FLAGS, STOP_SECONDS="1")
  assert result.returncode == 0
  assert f"stopping an earlier run, process {process.pid}" in result.stdout
  assert process.wait(timeout=20) == status
  assert len(pod.lines("python.jsonl")) == 1
  assert (pod.worker / "mmrl.pid").read_text() != f"{process.pid}\n"


def test_train_leaves_another_process_of_that_number(pod, earlier):
  process = earlier("something_else", ":")
  assert pod.run("train.sh", *TRAIN_FLAGS).returncode == 0
  assert process.poll() is None


@pytest.mark.parametrize(("arguments", "worker"), [([], 0), (["3"], 3)])
def test_logs(pod, arguments, worker):
  pod.plan((["ssh"], 0, "step 1"))
  assert "step 1" in pod.run("logs.sh", *arguments).stdout
  assert pod.calls() == [
    tpu_vm(
      *["ssh", "pod", f"--worker={worker}"],
      *["--command=tail -n 100 -F ~/mmrl.log", ZONE],
    )
  ]


@pytest.mark.parametrize(
  ("arguments", "call"),
  [
    (
      ["runs/ral"],
      tpu_vm("scp", "--recurse", "pod:mmrl/runs/ral", "runs/", *WORKER_0),
    ),
    (
      ["/data/a b", "my results"],
      tpu_vm("scp", "--recurse", "pod:/data/a b", "my results/", *WORKER_0),
    ),
    (
      ["gs://bucket/a b", "results"],
      ["storage", "cp", "-r", "gs://bucket/a b", "results/"],
    ),
  ],
)
def test_fetch(pod, arguments, call):
  """From a worker, or from a bucket, which needs no TPU."""
  needed = {} if "scp" in call else {"TPU_NAME": None, "ZONE": None}
  assert pod.run("fetch.sh", *arguments, **needed).returncode == 0
  assert pod.calls() == [call]
  (folder,) = [word for word in call if word.endswith("/")]
  assert (pod.root / folder).is_dir()


@pytest.mark.parametrize("mode", ["on-demand", "spot", "queued", "queued-spot"])
def test_delete(pod, mode):
  assert pod.run("delete.sh", MODE=mode).returncode == 0
  call = tpu_vm("delete", "pod", "--quiet", ZONE)
  if mode.startswith("queued"):
    call = queued("delete", "pod", "--force", "--quiet", ZONE)
  assert pod.calls() == [call]


@pytest.mark.parametrize("name", NAMES)
def test_script_is_short_and_says_what_it_does(name):
  path = SCRIPTS / name
  lines = path.read_text().splitlines()
  assert len(lines) <= 40
  assert max(len(line) for line in lines) <= 80
  if name != "common.sh":
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert os.access(path, os.X_OK)


def test_readme_names_every_script_and_variable():
  readme = (SCRIPTS / "README.md").read_text()
  text = "".join((SCRIPTS / name).read_text() for name in NAMES)
  variables = set(re.findall(r"\$\{([A-Z_]{4,}):[-=+?]", text)) | set(POD)
  assert variables == set(re.findall(r"^\| `([A-Z_]+)`", readme, re.MULTILINE))
  plain = readme.replace("`", "")
  for name, default in re.findall(r"\$\{([A-Z_]{4,}):[-=]([^}]+)\}", text):
    assert f"\n| {name} | {default} |" in plain
  for name in set(NAMES) - {"common.sh", "worker.sh"}:
    assert f"| `{name}" in readme


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_shellcheck():
  result = subprocess.run(
    ["shellcheck", *[f"tpu_scripts/{name}" for name in NAMES]],
    cwd=SCRIPTS.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout
