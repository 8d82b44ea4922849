"""python -m mmrl.train --config FILE.py[:arg] --workdir DIR"""

from mmrl import commands


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl.train import loop

  loop.train(commands.CONFIG.value, commands.WORKDIR.value)


if __name__ == "__main__":
  commands.run(main)
