"""Runs the tests as other processors would compute: python -m tests.processors

XLA compiles for the processor that it finds, and shares a product out over as
many threads as there are: both decide in which order float32 numbers are added.
A tolerance that holds here may not hold there. What is given behind the name
goes to pytest: `python -m tests.processors -m 'not parity'` has all tests.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

# Newest instructions that XLA may use; "" for all that are here.
INSTRUCTIONS = ("SSE4_2", "AVX2", "")
THREADS = (1, 4)


def main() -> int:
  """Runs pytest six times; 1 if any of them is red."""
  root, red = pathlib.Path(__file__).parents[1], []
  for newest, threads in itertools.product(INSTRUCTIONS, THREADS):
    flag = f"--xla_cpu_max_isa={newest}" if newest else ""
    name = f"{newest or 'all instructions'}, {threads} threads"
    print(f"== {name}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
      settings = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        "NPROC": str(threads),
        "JAX_COMPILATION_CACHE_DIR": cache,
      }
      command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
      if subprocess.run(
        command, cwd=root, env=os.environ | settings, check=False
      ).returncode:
        red.append(name)
  print("red: " + "; ".join(red) if red else "green on all of them")
  return bool(red)


if __name__ == "__main__":
  sys.exit(main())
