"""python -m mmrl.export --workdir DIR --output HF_DIR"""

from absl import flags

from mmrl import commands

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights."
)
_SHARD_BYTES = flags.DEFINE_integer(
  "max_shard_bytes",
  5 * 10**9,
  "Size above which weights are split up.",
  lower_bound=1,
)


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl.export.export import export

  workdir, output = map(commands.given, (commands.WORKDIR, _OUTPUT))
  step = export(
    workdir,
    output,
    dtype=_DTYPE.value,
    max_shard_bytes=_SHARD_BYTES.value,
  )
  print(f"wrote step {step} of {workdir} to {output}")


if __name__ == "__main__":
  commands.run(main, required=("workdir", "output"))
