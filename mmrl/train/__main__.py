"""python -m mmrl.train --config FILE.py[:ARGUMENT] --workdir DIR

Trains a model. A stopped run goes on when the same command is given again.
"""

from mmrl.machines import signals

if __name__ == "__main__":
  signals.at_once()  # in the imports that follow as well

from absl import flags

from mmrl import commands

CHECK = flags.DEFINE_bool(
  "check", False, "Open and measure all questions first; see mmrl.check."
)


def main() -> None:
  # Imported late, so that a mistyped flag is reported at once.
  from mmrl.machines import processes
  from mmrl.train import loop

  if commands.DISTRIBUTED.value or commands.COORDINATOR.value:
    processes.join(
      commands.COORDINATOR.value,
      commands.PROCESSES.value,
      commands.PROCESS.value,
    )
  loop.train(
    commands.CONFIG.value,
    commands.given(commands.WORKDIR),
    check=CHECK.value,
  )


if __name__ == "__main__":
  commands.run(main, also=commands.JOINING, resumes=True)
