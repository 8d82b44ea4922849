"""Gives a model latent segments (VaLR): tokens, embeddings, config.json.

  python -m experiments.latent_model --model DIR --output DIR

Tokens `<latent>` and `</latent>` that the tokenizer lacks are added, with the
mean of all embeddings as theirs; --no-new-tokens refuses such a tokenizer. What
a segment is stands in config.json of the output, under "mmrl"; training,
sampling and scoring read it there.
"""

import dataclasses

from experiments import arguments


def main() -> None:
  """Writes the model."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--model", required=True, help="directory or hub id")
  parser.add_output("directory to write")
  parser.add_argument(
    "--length",
    type=int,
    default=16,
    help="positions of a segment, both tokens included; a square",
  )
  parser.add_argument(
    "--segments", type=int, default=2, help="most segments of an answer"
  )
  parser.add_argument(
    "--pre-norm",
    action="store_true",
    help="feed states back before the final norm",
  )
  parser.add_argument(
    "--stop-feedback-grad",
    action="store_true",
    help="let no gradient through the states that are fed back",
  )
  parser.add_argument(
    "--no-new-tokens",
    action="store_true",
    help="refuse a tokenizer without the tokens",
  )
  flags = parser.parse()
  from mmrl import hub
  from mmrl.hub.tokens import latent

  model = latent.add(
    hub.load(flags.model),
    new=not flags.no_new_tokens,
    length=flags.length,
    segments=flags.segments,
    pre_norm=flags.pre_norm,
    stop_feedback_grad=flags.stop_feedback_grad,
  )
  hub.save(model, flags.output)
  latent = dataclasses.asdict(model.config.latent)
  print(f"{flags.output} written: {latent}")


if __name__ == "__main__":
  arguments.run(main)
