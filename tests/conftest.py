"""Settings of every test: eight CPU devices, fast compilation, checked types.

XLA reads its flags once, before JAX starts. Tests compile much and compute
little, so its optimiser is off in this process; whole runs, which tests start
in processes of their own, have it on.
"""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jaxtyping

# Annotations of the library are checked at run time, in tests only.
jaxtyping.install_import_hook("mmrl", "beartype.beartype")
