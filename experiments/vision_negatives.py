"""Chooses of candidate pictures the one that the chosen answer fits least.

  python -m experiments.vision_negatives --data DIR/candidates.jsonl \\
    --output DIR/train.jsonl --model Qwen/Qwen2.5-VL-3B-Instruct

A line of the data is a pair as experiments/adavip.py has it, with `candidates`
in the place of `rejected_images`: its picture with one element removed each,
made by detection, segmentation and inpainting of your choice; an empty list
where nothing was found. The candidate with the least score stands in the output
as `rejected_images`, the first of equals; paths there are relative to it.
Scores are

  --model PATH   mean log-likelihood of the chosen answer, by a model of ours
  --clip DIR     cosine of picture and answer, by a CLIP model in a directory in
                 the Hugging Face layout; needs torch
  --random SEED  a random candidate instead, for comparison

The selection is that of AdaViP, arXiv 2504.15619, which takes CLIP.
"""

from collections.abc import Callable, Sequence
import json
import os
import pathlib

import numpy as np
from PIL import Image

from experiments import arguments
from mmrl.errors import UserError

# (path of a picture, question, answer) -> how well they fit.
Score = Callable[[Sequence[tuple[str, str, str]]], Sequence[float]]


def select(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the candidate of the least score [B], and whether there is any [B].

  Args:
    scores: [B, N] of pairs and their candidates; inf where there is none.
  """
  return scores.argmin(axis=1), np.isfinite(scores).any(axis=1)


def likelihood(path: str, batch: int = 8) -> Score:
  """Scores by the mean log-likelihood of the answer's tokens under a model."""
  import jax
  import jax.numpy as jnp

  from mmrl import data, hub
  from mmrl.data import example
  from mmrl.probes.scores import Scorer

  model = hub.load(path)
  scorer = Scorer(model.config, 1.0, (), "self")

  @jax.jit
  def of_batch(params, prompt, tokens, mask):
    prefix = scorer.prefill(params, prompt, None)
    logprobs = scorer(params, prefix, tokens).logprobs
    total = jnp.where(mask, logprobs, 0.0).sum(-1)
    return (total / jnp.maximum(mask.sum(-1), 1))[:, 0]

  def score(triples):
    limit = 10**6
    ids = [model.processor.encode_text(t[2], limit, t[0]) for t in triples]
    # Few shapes: a power of two that the longest answer fits in.
    length = 1 << (max(map(len, ids)) - 1).bit_length()
    tokens = np.full((len(ids), 1, length), model.config.pad_token_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, one in enumerate(ids):
      tokens[row, 0, : len(one)] = one
      mask[row, 0, : len(one)] = True
    asked = [
      data.Example(
        path,
        question,
        example.ask(question, "{question}", [{"type": "image", "image": path}]),
        None,
      )
      for path, question, _ in triples
    ]
    found = []
    batches = data.in_order(
      asked,
      model.processor,
      indices=range(len(asked)),
      batch_size=batch,
      rows=batch,
      answer_length=length,
    )
    for start, (samples, count) in enumerate(batches):
      rows = np.arange(start * batch, (start + 1) * batch).clip(
        max=len(ids) - 1
      )
      values = of_batch(model.params, samples.prompt, tokens[rows], mask[rows])
      found += np.asarray(values)[:count].tolist()
    return found

  return score


def clip(directory: str) -> Score:
  """Scores by the cosine of a CLIP model's embeddings.

  Raises:
    UserError: if torch or the directory isn't there.
  """
  try:
    import torch
    from transformers import CLIPModel, CLIPProcessor
  except ImportError as error:
    raise UserError(
      f"--clip: expected torch, found none ({error}); pip install torch, or use"
      " --model"
    ) from error
  if not pathlib.Path(directory).is_dir():
    raise UserError(f"--clip: expected a directory, found none at {directory}")
  try:
    model = CLIPModel.from_pretrained(directory).eval()
    processor = CLIPProcessor.from_pretrained(directory)
  except (OSError, ValueError, TypeError, ImportError) as error:
    raise UserError(
      f"--clip: expected a CLIP model in {directory}, found {error}"
    ) from error

  def score(triples):
    found = []
    for path, _, answer in triples:
      with Image.open(path) as image, torch.no_grad():
        inputs = processor(
          text=[answer],
          images=[image.convert("RGB")],
          return_tensors="pt",
          truncation=True,
        )
        outputs = model(**inputs)
      # The logit is the cosine times a positive scale.
      found.append(float(outputs.logits_per_image))
    return found

  return score


def random(seed: int) -> Score:
  """Scores at random."""
  rng = np.random.default_rng(seed)
  return lambda triples: rng.random(len(triples)).tolist()


def read(path: pathlib.Path) -> list[dict]:
  """Reads the rows.

  Raises:
    UserError: naming the line that is no pair with candidates.
  """
  rows = []
  try:
    lines = path.read_text("utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"--data: expected a file of text, found {error}"
    ) from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise UserError(
        f"{path}:{number}: expected JSON, found {error}"
      ) from error
    wanted = ("question", "images", "answers", "candidates")
    missing = [
      key for key in wanted if not isinstance(row, dict) or key not in row
    ]
    if missing:
      raise UserError(
        f"{path}:{number}: expected a row with {', '.join(wanted)}, found none"
        f" of {', '.join(missing)}"
      )
    _check(row, f"{path}:{number}")
    for one in row["candidates"]:
      if not (path.parent / one).is_file():
        raise UserError(f"{path}:{number}: expected a picture, found no {one}")
    rows.append(row)
  return rows


def _check(row: dict, where: str) -> None:
  """Checks the values of a row."""
  if not isinstance(row["question"], str):
    raise UserError(
      f"{where}: expected a text as 'question', found {row['question']!r:.80}"
    )
  for key in ("images", "answers", "candidates"):
    value = row[key]
    if not isinstance(value, list) or not all(
      isinstance(x, str) for x in value
    ):
      raise UserError(
        f"{where}: expected a list of texts as {key!r}, found {value!r:.80}"
      )
  if len(row["images"]) != 1 or len(row["answers"]) != 2:
    raise UserError(
      f"{where}: expected one picture and two texts, found"
      f" {len(row['images'])} and {len(row['answers'])}"
    )


def chosen(
  rows: Sequence[dict], folder: pathlib.Path, score: Score
) -> list[dict]:
  """Returns rows with the candidate of the least score, where there is one."""
  triples = [
    (str(folder / one), row["question"], row["answers"][0])
    for row in rows
    for one in row["candidates"]
  ]
  values = iter(score(triples) if triples else ())
  most = max([len(row["candidates"]) for row in rows], default=0)
  scores = np.full((len(rows), max(most, 1)), np.inf)
  for number, row in enumerate(rows):
    for place, _ in enumerate(row["candidates"]):
      scores[number, place] = next(values)
  found = []
  for row, place, valid in zip(rows, *select(scores), strict=True):
    kept = {key: x for key, x in row.items() if key != "candidates"}
    if valid:
      kept["rejected_images"] = [row["candidates"][place]]
    found.append(kept)
  return found


def main() -> None:
  """Writes the pairs, and says how many have no candidate."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--data", required=True, type=pathlib.Path, help="candidates"
  )
  parser.add_output("file of pairs", arguments.output_file)
  one = parser.add_mutually_exclusive_group(required=True)
  one.add_argument("--model", help="directory or hub id")
  one.add_argument("--clip", help="directory")
  one.add_argument("--random", type=int, help="seed")
  flags = parser.parse()
  if flags.output.resolve() == flags.data.resolve():
    raise UserError(
      f"--output: expected another file than --data, found {flags.output} as"
      " both"
    )
  rows = read(flags.data)
  if flags.model:
    score = likelihood(flags.model)
  else:
    score = clip(flags.clip) if flags.clip else random(flags.random)
  found = chosen(rows, flags.data.parent, score)
  for row in found:
    for key in ("images", "rejected_images"):
      if key in row:
        row[key] = [
          os.path.relpath(flags.data.parent / one, flags.output.parent)
          for one in row[key]
        ]
  flags.output.parent.mkdir(parents=True, exist_ok=True)
  flags.output.write_text("".join(json.dumps(row) + "\n" for row in found))
  without = sum("rejected_images" not in row for row in found)
  print(f"{flags.output}: {len(found)} pairs, {without} without a candidate")


if __name__ == "__main__":
  arguments.run(main)
