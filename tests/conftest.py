"""Settings of every test: eight CPU devices, fast compilation.

XLA reads its flags once, before JAX starts. Tests compile much and compute
little, so its optimiser is off in this process; whole runs, which tests start
in processes of their own, have it on.
"""

import collections
import gc
import importlib.metadata
import importlib.util
import os
import pathlib

FLAGS = [
  "--xla_force_host_platform_device_count=8",
  # Eight devices on two busy cores may keep each other waiting for long, after
  # which XLA would end the process; 40 s by default.
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  "--xla_backend_optimization_level=0",
]
# Two workers have the two cores anyway. XLA ends the process at a flag that it
# doesn't know, and libtpu knows none of the CPU's.
if not importlib.util.find_spec("libtpu"):
  FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
  # Halves the time to compile; may go.
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One cache of compiled programs for all workers, the runs they start, and the
# next time: many tests build the same programs, and all of them again.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Arrays of different ranks don't meet unless the code says how; in the
# processes that tests start, too.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import jaxtyping  # noqa: E402, JAX reads the flags above
import pytest  # noqa: E402

# Modules whose annotations are checked: where some are of arrays' shapes; the
# other types mypy knows. Not worlds and readers: they have few arrays, and many
# small functions, which take up to 15 times as long.
LIBRARY = pathlib.Path(__file__).parents[1] / "mmrl"
CHECKED = [
  ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
  for path in sorted(LIBRARY.rglob("*.py"))
  if path.relative_to(LIBRARY).parts[0] not in ("data", "worlds")
  if "jaxtyping" in path.read_text("utf-8")
]

# Tracing makes many objects that stay: looking for garbage among them at
# Python's pace takes a sixth of the time.
gc.freeze()
gc.set_threshold(200_000, 100, 100)

# Files of minutes, the longest first, which are begun first: the last to end is
# a short one.
LONG = (
  *("kill_test", "processes_test", "colabs_test", "loop_test", "asked_test"),
  *("lora_test", "goldens_test", "newcomer_test", "tiny_worlds_test"),
  *("check_test", "visual_terms_test", "vlm_test", "in_loop_test"),
  *("contract_test", "plan_test", "sharding_test", "training_test"),
  *("sparse_test", "fuzz_test", "parallel_test", "sampler_test"),
  *("extrapolation_test", "stages_test", "model_test"),
)


# Core-seconds above which a file says in its docstring what they are for.
BUDGET_SECONDS = 60
SECONDS = pytest.StashKey[collections.Counter]()


@pytest.fixture(autouse=True, scope="session")
def layers_in_a_scan():
  """As in large models: a program has one layer's code, not each layer's.

  Small ones are compiled layer after layer, which runs faster and compiles
  slower. Some tests, and whole runs, do that.
  """
  from mmrl.models import vlm

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vlm, "_UNROLLED_BYTES", 0)
    yield


def core_seconds() -> float:
  """Of this process and those that it has waited for."""
  return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  began = core_seconds()
  try:
    return (yield)
  finally:
    item.config.stash[SECONDS][item.path.stem] += core_seconds() - began


def check_types():
  """Checks annotations of the library when its functions are called."""
  jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


def pytest_configure(config):
  # It takes a fifth of the time: for the tests that a person doesn't wait for.
  if "not full" not in config.option.markexpr:
    check_types()
  config.stash[SECONDS] = collections.Counter()
  if config.pluginmanager.hasplugin("xdist"):
    config.pluginmanager.register(Workers())


def pytest_sessionfinish(session):
  """A worker tells the process that prints."""
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["seconds"] = dict(session.config.stash[SECONDS])


class Workers:
  """Adds up what workers tell; a hook that only pytest-xdist knows."""

  def pytest_testnodedown(self, node):
    found = getattr(node, "workeroutput", {}).get("seconds", {})
    node.config.stash[SECONDS].update(found)


def pytest_terminal_summary(terminalreporter, config):
  if config.getoption("durations") is None:
    return
  seconds = config.stash[SECONDS]
  terminalreporter.section("core-seconds of the longest files")
  for name, spent in seconds.most_common(20):
    over = f", over the budget of {BUDGET_SECONDS}"
    over *= spent > BUDGET_SECONDS
    terminalreporter.write_line(f"{spent:7.0f} {name}{over}")
  terminalreporter.write_line(f"{seconds.total():7.0f} all files")


def pytest_collection_modifyitems(items):
  place = dict(zip(LONG, range(len(LONG)), strict=True))
  items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
  for item in items:
    if item.get_closest_marker("parity"):
      # torch and Transformers have their own, and leave files open.
      item.add_marker(pytest.mark.filterwarnings("default"))
