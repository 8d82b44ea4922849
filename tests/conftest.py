"""Settings of every test: types are checked, ranks don't promote silently.

Eight CPU devices stand in for a pod; they must be asked for before JAX starts.
"""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jaxtyping

# Annotations of the library are checked at run time, in tests only.
jaxtyping.install_import_hook("mmrl", "beartype.beartype")
