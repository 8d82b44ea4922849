"""python -m mmrl.plan --config FILE.py[:ARGUMENT] [--topology v5p:4x4x4]

Says what a run needs of memory and time, on devices that needn't be there.
"""

import sys

from absl import flags

from mmrl import commands

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "TPU topology, as v5p:4x4x4; this machine's devices if none.",
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl.plan import plan

  fits = plan.run(
    commands.CONFIG.value, topology=_TOPOLOGY.value, as_json=_JSON.value
  )
  if not fits:
    sys.exit(1)


if __name__ == "__main__":
  commands.run(main, required=("config",))
