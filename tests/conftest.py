"""Settings of every test: eight CPU devices, fast compilation, checked types.

XLA reads its flags once, before JAX starts. Tests compile much and compute
little, so its optimiser is off in this process; whole runs, which tests start
in processes of their own, have it on.
"""

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
# Halves the time to compile. XLA ends the process at a flag it doesn't know:
# this one may go, and libtpu doesn't know it.
if importlib.metadata.version("jaxlib").startswith(
  "0.10."
) and not importlib.util.find_spec("libtpu"):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One cache of compiled programs for all workers, the runs they start, and the
# next time: many tests build the same programs, and all of them again.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Arrays of different ranks don't meet unless the code says how; in the
# processes that tests start, too.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import jaxtyping  # noqa: E402, JAX reads the flags above
import pytest  # noqa: E402

# Annotations of the library are checked at run time, in tests only.
jaxtyping.install_import_hook("mmrl", "beartype.beartype")

# Files of minutes, which are begun first: the last to end is a short one.
LONG = (
  "parallel_test",
  "sharding_test",
  "loop_test",
  "processes_test",
  "kill_test",
  "vlm_test",
  "step_test",
  "plan_test",
  "teacher_test",
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in LONG)
  for item in items:
    if item.get_closest_marker("parity"):
      # torch and Transformers have their own, and leave files open.
      item.add_marker(pytest.mark.filterwarnings("default"))
