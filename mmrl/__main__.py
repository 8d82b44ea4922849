"""python -m mmrl lists the commands; python -m mmrl COMMAND FLAGS runs one.

The latter is the same as python -m mmrl.COMMAND FLAGS.
"""

import runpy
import sys

from mmrl.errors import nearest

# By the module below mmrl, in the order of use.
COMMANDS = {
  "plan": "says what a run needs of memory and time",
  "train": "trains a model",
  "check": "opens and measures all questions of a run",
  "evaluate": "evaluates the model of a run, or models that a strategy asks",
  "sample": "answers one question about pictures and videos",
  "crosstable": "tells what two runs' texts change from what their weights do",
  "export": "writes a run's model for Transformers, vLLM and lmms-eval",
  "worlds": "draws examples of the generated worlds",
  "diffusion.train": "trains the diffusion model of shapes",
  "diffusion.sample": "draws what it samples with and without caches",
  "names": "prints the names by which functions take their data",
}


def listed() -> str:
  """Formats the list of commands."""
  width = max(map(len, COMMANDS))
  lines = ["python -m mmrl COMMAND FLAGS", ""]
  lines += [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
  lines += ["", "python -m mmrl COMMAND --help has the flags of a command."]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the command that the arguments name."""
  name, *rest = sys.argv[1:] or ["--help"]
  if name in ("-h", "-help", "--help", "help"):
    print(listed(), end="")
    return
  if name not in COMMANDS:
    sys.exit(_refused(name))
  sys.argv = [f"mmrl.{name}", *rest]
  runpy.run_module(f"mmrl.{name}", run_name="__main__", alter_sys=True)


def _refused(name: str) -> int:
  hint = nearest(name, COMMANDS)
  print(
    f"error: expected a command ({', '.join(COMMANDS)}), found {name}{hint}",
    file=sys.stderr,
  )
  return 2


if __name__ == "__main__":
  main()
