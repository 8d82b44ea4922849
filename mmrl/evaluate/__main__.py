"""python -m mmrl.evaluate --config FILE.py[:arg] --workdir DIR"""

from mmrl import commands


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl.evaluate import command

  command.run(commands.CONFIG.value, commands.given(commands.WORKDIR))


if __name__ == "__main__":
  commands.run(main)
