"""python -m mmrl.sample --model DIR --image FILE --prompt TEXT

With --attention OUT.png it draws where the answer looked: `--token` says which
of its tokens, by number from 0, or "all", or the "mean" of all.
"""

import dataclasses

from absl import flags

from mmrl import commands
from mmrl.errors import UserError

_MODEL = flags.DEFINE_string("model", None, "Model directory, or hub id.")
_IMAGE = flags.DEFINE_multi_string("image", [], "Picture file; repeatable.")
_VIDEO = flags.DEFINE_multi_string("video", [], "Video file; repeatable.")
_PROMPT = flags.DEFINE_string("prompt", None, "Question.")
_LENGTH = flags.DEFINE_integer(
  "length", 128, "Most tokens of the answer.", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "0 is greedy.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of weights and computation."
)
_ATTENTION = flags.DEFINE_string(
  "attention", None, "PNG to draw the answer's attention in."
)
_TOKEN = flags.DEFINE_string(
  "token", "mean", "Answer token to draw: a number from 0, 'all', or 'mean'."
)
_LAYER = flags.DEFINE_integer("layer", -1, "Decoder layer that is drawn.")


def main() -> None:
  # Imported late, so that a mistyped flag is answered at once.
  from mmrl import models
  from mmrl.sample import sample

  model = models.load(commands.given(_MODEL), dtype=_DTYPE.value)
  config = dataclasses.replace(model.config, dtype=_DTYPE.value)
  processor = dataclasses.replace(model.processor, config=config)
  model = models.Model(config, model.params, processor)
  parts = [{"type": "image", "image": file} for file in _IMAGE.value]
  parts += [{"type": "video", "video": file} for file in _VIDEO.value]
  parts.append({"type": "text", "text": commands.given(_PROMPT)})
  found = sample.answer(
    model,
    [{"role": "user", "content": parts}],
    length=_LENGTH.value,
    temperature=_TEMPERATURE.value,
    seed=_SEED.value,
    layer=_LAYER.value,
  )
  print(found.text)
  if _ATTENTION.value:
    sheet = sample.draw(model, found, _TOKEN.value)
    try:
      sheet.save(_ATTENTION.value)
    except (OSError, ValueError) as error:
      raise UserError(
        f"expected --attention to be a picture file that can be written:"
        f" {error}"
      ) from error


if __name__ == "__main__":
  commands.run(main, required=("model", "prompt"))
