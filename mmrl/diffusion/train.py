"""python -m mmrl.diffusion.train --config FILE.py --workdir DIR

Trains the diffusion model of shapes; experiments/diffusion/shapes.py is its
config. A stopped run goes on when the same command is given again.
"""

from mmrl.machines import signals

if __name__ == "__main__":
  signals.at_once()  # in the imports that follow as well

from mmrl import commands
from mmrl.diffusion import config


def main() -> None:
  # Imported late, so that a mistyped flag is reported at once.
  from mmrl.diffusion import training

  training.train(commands.CONFIG.value, commands.given(commands.WORKDIR))


if __name__ == "__main__":
  commands.run(main, resumes=True, base=config)
