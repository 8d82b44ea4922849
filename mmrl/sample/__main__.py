"""python -m mmrl.sample --model DIR --image FILE --prompt TEXT

Answers one question about pictures and videos.

With --attention=OUT.png it also draws question, answer, and the answer's
attention on the pictures: --token selects a token by its number from 0, "all",
or the "mean" of all.
"""

import dataclasses

from absl import flags

from mmrl import commands
from mmrl.errors import UserError, tell

_TINY = (
  "the model is the tiny one: it knows easy-VQA's questions (what color is the"
  " circle? is there a blue shape?) about a picture of one shape, no others"
)


def define_flags() -> None:
  """Defines the flags; called when this is main."""
  flags.DEFINE_string("model", None, "Model directory, or hub id.")
  flags.DEFINE_string(
    "adapter", None, "LoRA adapter of the model, in PEFT's format."
  )
  flags.DEFINE_multi_string("image", [], "Picture file; repeatable.")
  flags.DEFINE_multi_string("video", [], "Video file; repeatable.")
  flags.DEFINE_string("prompt", None, "Question.")
  flags.DEFINE_integer(
    "length", 128, "Most tokens of the answer.", lower_bound=1
  )
  flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of sampling.")
  flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of weights and computation."
  )
  flags.DEFINE_string(
    "attention", None, "PNG to draw the answer's attention in."
  )
  flags.DEFINE_string(
    "token", "mean", "Answer token to draw: a number from 0, 'all', or 'mean'."
  )
  flags.DEFINE_integer("layer", -1, "Decoder layer that is drawn.")


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import hub
  from mmrl.sample.answer import answer, draw

  given = flags.FLAGS
  model = hub.load(given.model, dtype=given.dtype, adapter=given.adapter)
  config = dataclasses.replace(model.config, dtype=given.dtype)
  processor = dataclasses.replace(model.processor, config=config)
  model = hub.Model(config, model.params, processor)
  parts = [{"type": "image", "image": file} for file in given.image]
  parts += [{"type": "video", "video": file} for file in given.video]
  parts.append({"type": "text", "text": given.prompt})
  found = answer(
    model,
    [{"role": "user", "content": parts}],
    length=given.length,
    temperature=given.temperature,
    seed=given.seed,
    layer=given.layer,
  )
  print(found.text)
  if given.attention:
    sheet = draw(model, found, given.token)
    try:
      sheet.save(given.attention)
    except (OSError, ValueError) as error:
      raise UserError(
        f"expected --attention to be a picture file that can be written:"
        f" {error}"
      ) from error
  if hub.is_tiny(model.config):
    tell(_TINY)


if __name__ == "__main__":
  define_flags()
  commands.run(main, required=("model", "prompt"))
