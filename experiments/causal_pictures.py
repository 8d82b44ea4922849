"""Causal-HalBench's questions about pictures of your own, in two steps.

  python -m experiments.causal_pictures --annotations A.jsonl --output DIR

reads pictures with the masks of their objects, a picture on each line:

  {"image": "a.jpg", "objects": [{"name": "person", "mask": "a_0.png"}, ..]}

and writes for every class of each picture, as the object that is replaced, what
stays, eight names to choose from, the picture with the object tinted
(DIR/tinted), and the mask to fill (DIR/masks, white), in DIR/samples.jsonl. A
mask is a picture of the same size, above 0 where the object is. Paths are
relative to A.jsonl.

Then a model of your choice names one of the candidates for each tinted picture,
and another paints it into the mask; FILE.jsonl says what came out, paths
relative to it:

  {"sample": 0, "reply": "A bear.", "image": "filled/0.png"}

  python -m experiments.causal_pictures --samples DIR/samples.jsonl \\
    --filled FILE.jsonl --output BENCHMARK

writes BENCHMARK/questions.json in the form of the released file, with pictures
NAME.EXT and NAME_001.EXT, .. beside it, for the benchmark `causal_pairs`:

  {"name": "causal_pairs", "data": {"name": "CausalHalBench",
   "path": "BENCHMARK/questions.json", "media": "BENCHMARK"}}

A sample whose reply names no candidate is dropped, and counted. The paper
(arXiv 2511.10268) chose with gemini-2.5-flash, and painted with FLUX.1-dev and
a ControlNet for inpainting, 28 steps, guidance 3.5.
"""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image

from experiments import arguments
from mmrl.errors import UserError

_CANDIDATES = 8


def _lines(path: str, what: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
  """Rows of a JSON Lines file, with these keys and no others."""
  from mmrl.data import lines, texts

  def check(row: Any, name: str) -> dict[str, Any]:
    try:
      if not isinstance(row, dict):
        raise UserError(f"expected an object, found {row!r:.80}")
      lines.check_keys(row, keys, "a row")
      lacking = [key for key in keys if key not in row]
      if lacking:
        raise UserError(f"expected {lacking[0]!r}, found {sorted(row)}")
    except UserError as error:
      raise UserError(f"{name}: {error}") from error
    return row

  return texts.each(path, what, check)


def _open(path: pathlib.Path, where: str, mode: str) -> np.ndarray:
  try:
    with Image.open(path) as picture:
      return np.asarray(picture.convert(mode))
  except (OSError, ValueError) as error:
    raise UserError(
      f"{where}: expected a picture at {path}: {error}"
    ) from error


def _masks(row: dict[str, Any], folder: pathlib.Path, size: tuple) -> dict:
  """The mask of each class of a picture: of all its objects."""
  found: dict[str, np.ndarray] = {}
  for one in row["objects"]:
    if not isinstance(one, dict) or one.keys() != {"name", "mask"}:
      raise UserError(
        f"{row['image']}: expected objects with 'name' and 'mask' alone, found"
        f" {one!r:.80}"
      )
    mask = _open(folder / one["mask"], row["image"], "L") > 0
    if mask.shape != size:
      raise UserError(
        f"{row['image']}: expected a mask of {size[1]} x {size[0]} pixels,"
        f" found {one['mask']} of {mask.shape[1]} x {mask.shape[0]}"
      )
    found[one["name"]] = found.get(one["name"], np.zeros(size, bool)) | mask
  return found


def select(annotations: str, output: pathlib.Path, seed: int) -> int:
  """Writes samples of all pictures; returns how many."""
  from mmrl.benchmarks.causal import masks, selection

  rows = _lines(annotations, "annotations", ("image", "objects"))
  folder = pathlib.Path(annotations).parent
  names = sorted({one["name"] for row in rows for one in row["objects"]})
  place = {name: i for i, name in enumerate(names)}
  labels = np.zeros((len(rows), len(names)), bool)
  for i, row in enumerate(rows):
    labels[i, [place[one["name"]] for one in row["objects"]]] = True
  counts = selection.cooccurrence(labels)
  generator = np.random.default_rng(seed)
  for name in ("tinted", "masks"):
    (output / name).mkdir(parents=True, exist_ok=True)
  samples = []
  for i, row in enumerate(rows):
    if labels[i].sum() < 2:
      continue
    picture = _open(folder / row["image"], annotations, "RGB")
    of_class = _masks(row, folder, picture.shape[:2])
    for target in map(int, np.flatnonzero(labels[i])):
      chances = selection.contextual_probabilities(counts, target, labels[i])
      context = int(generator.choice(len(names), p=chances))
      found = selection.candidates(
        counts, context, labels[i], generator, _CANDIDATES
      )
      if found is None:
        continue
      file = f"{len(samples)}.png"
      mask = of_class[names[target]]
      tinted = masks.tint(picture, mask)
      Image.fromarray(tinted).save(output / "tinted" / file)
      fill = masks.to_fill(mask, of_class[names[context]])
      Image.fromarray(255 * fill.astype(np.uint8)).save(output / "masks" / file)
      samples.append(
        {
          "sample": len(samples),
          "image": str((folder / row["image"]).resolve()),
          "present": [names[j] for j in np.flatnonzero(labels[i])],
          "target": names[target],
          "context": names[context],
          "candidates": [names[j] for j in found],
          "company": dict(zip(names, counts[target].tolist(), strict=True)),
        }
      )
  path = output / "samples.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in samples))
  return len(samples)


def questions(
  samples: str, filled: str, output: pathlib.Path, seed: int
) -> tuple[int, int]:
  """Writes the benchmark; returns the number of pairs, and of those dropped."""
  keys = (
    *("sample", "image", "present", "target"),
    *("context", "candidates", "company"),
  )
  known = {one["sample"]: one for one in _lines(samples, "samples", keys)}
  folder, generator = pathlib.Path(filled).parent, np.random.default_rng(seed)
  output.mkdir(parents=True, exist_ok=True)
  changed: dict[str, int] = {}
  sources: dict[str, pathlib.Path] = {}
  rows: list[dict[str, Any]] = []
  dropped, seen = 0, set()
  for one in _lines(filled, "filled pictures", ("sample", "reply", "image")):
    if one["sample"] not in known or one["sample"] in seen:
      raise UserError(
        f"{filled}: expected each sample of {samples} once, found"
        f" {one['sample']!r:.80}"
      )
    seen.add(one["sample"])
    asked = _asked(known[one["sample"]], str(one["reply"]), generator)
    if asked is None:
      dropped += 1
      continue
    original = pathlib.Path(known[one["sample"]]["image"])
    number = changed[original.stem] = changed.get(original.stem, 0) + 1
    name = f"{original.stem}_{number:03d}{original.suffix}"
    if sources.setdefault(original.stem, original) != original:
      raise UserError(
        f"{samples}: expected pictures of different names, found {original} and"
        f" {sources[original.stem]}; rename one"
      )
    shutil.copyfile(original, output / original.name)
    painted = _open(folder / one["image"], filled, "RGB")
    Image.fromarray(painted).save(output / name)
    for kind, tag, thing, answer in asked:
      article = "an" if thing[0].lower() in "aeiou" else "a"
      rows.append(
        {
          "image_name": name if tag == "inpainted" else original.name,
          "type": kind,
          "answer": answer,
          "tag": tag,
          "id": len(rows),
          "q": f"Is there {article} {thing} in the image?",
        }
      )
  (output / "questions.json").write_text(json.dumps(rows, indent=1))
  return len(rows) // 7, dropped


def _asked(sample: dict[str, Any], reply: str, generator: Any) -> Any:
  """Type, tag, object and answer of seven questions; None if dropped."""
  from mmrl.benchmarks.causal import selection

  inserted = selection.named(reply, sample["candidates"])
  names = [*sample["company"]]
  counts = np.zeros((len(names), len(names)), int)
  counts[names.index(sample["target"])] = [*sample["company"].values()]
  excluded = np.isin(names, [*sample["present"], inserted or ""])
  absent = selection.absent(
    counts, names.index(sample["target"]), excluded, generator
  )
  if inserted is None or absent is None:
    return None
  both = [("target", sample["context"], "yes")]
  both += [("absent", names[i], "no") for i in absent]
  found = [
    (kind, tag, thing, answer)
    for tag in ("origin", "inpainted")
    for kind, thing, answer in both
  ]
  return [*found, ("inpaint", "inpainted", inserted, "yes")]


def main() -> None:
  """Does the step that the arguments are of."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--annotations", help="pictures and masks: first step")
  parser.add_argument("--samples", help="of the first step: second step")
  parser.add_argument("--filled", help="what was chosen and painted")
  parser.add_output("folder")
  parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
  flags = parser.parse()
  first, second = flags.annotations, (flags.samples, flags.filled)
  if bool(first) == any(second) or any(second) != all(second):
    raise UserError(
      "expected --annotations, or --samples and --filled; see --help"
    )
  if first:
    print(f"{select(first, flags.output, flags.seed)} samples")
    return
  pairs, dropped = questions(*second, flags.output, flags.seed)
  print(f"{pairs} pairs; {dropped} dropped, whose reply names no candidate")


if __name__ == "__main__":
  arguments.run(main)
