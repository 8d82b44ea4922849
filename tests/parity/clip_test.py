"""Candidates are chosen by a CLIP model in a directory, a small random one."""

import json
import sys

import numpy as np
from PIL import Image
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from experiments import vision_negatives

pytestmark = pytest.mark.parity
ANSWERS = ("a red cup", "two blue hats and a dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A CLIP model of two layers, with a tokenizer of letters, and pictures."""
  folder = tmp_path_factory.mktemp("clip")
  letters = [chr(i) for i in range(97, 123)]
  words = [*letters, *(f"{x}</w>" for x in letters)]
  specials = ["<|startoftext|>", "<|endoftext|>"]
  vocabulary = {word: i for i, word in enumerate([*words, *specials])}
  tokenizer = transformers.CLIPTokenizer(
    vocab=vocabulary, merges=[], model_max_length=32
  )
  sizes = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 16,
  }
  config = transformers.CLIPConfig(
    text_config=sizes
    | {
      "vocab_size": len(vocabulary),
      "max_position_embeddings": 32,
      "bos_token_id": vocabulary[specials[0]],
      "eos_token_id": vocabulary[specials[1]],
      "pad_token_id": vocabulary[specials[1]],
    },
    vision_config=sizes | {"image_size": 32, "patch_size": 8},
    projection_dim=16,
  )
  torch.manual_seed(0)
  transformers.CLIPModel(config).save_pretrained(folder / "clip")
  picture = transformers.CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
  )
  transformers.CLIPProcessor(picture, tokenizer).save_pretrained(
    folder / "clip"
  )
  rng = np.random.default_rng(0)
  for i in range(6):
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((48, 40)).save(folder / f"{i}.png")
  return folder


def cosine(folder, name: str, text: str) -> float:
  """Of the two embeddings, by the towers themselves."""
  path = folder / "clip"
  model = transformers.CLIPModel.from_pretrained(path).eval()
  processor = transformers.CLIPProcessor.from_pretrained(path)
  image = Image.open(folder / name).convert("RGB")
  inputs = processor(text=[text], images=[image], return_tensors="pt")
  with torch.no_grad():
    text_out = model.text_model(inputs["input_ids"]).pooler_output
    image_out = model.vision_model(inputs["pixel_values"]).pooler_output
    one = model.text_projection(text_out)
    other = model.visual_projection(image_out)
  return float(torch.nn.functional.cosine_similarity(one, other))


def test_the_command_takes_the_least_cosine(folder, monkeypatch):
  lines = [
    {
      "question": "what is there?",
      "images": ["0.png"],
      "answers": [answer, "a dog"],
      "candidates": [f"{i}.png" for i in range(1, 6)],
    }
    for answer in ANSWERS
  ]
  data = folder / "candidates.jsonl"
  data.write_text("\n".join(map(json.dumps, lines)))
  output = folder / "train.jsonl"
  flags = ["--data", data, "--output", output, "--clip", folder / "clip"]
  monkeypatch.setattr(sys, "argv", ["vision_negatives", *map(str, flags)])
  vision_negatives.main()
  found = [json.loads(line) for line in output.read_text().splitlines()]
  for line, one in zip(lines, found, strict=True):
    values = {
      name: cosine(folder, name, line["answers"][0])
      for name in line["candidates"]
    }
    # Further apart than rounding, so that the least one is no accident.
    first, second = sorted(values.values())[:2]
    assert second - first > 1e-5
    assert one["rejected_images"] == [min(values, key=values.get)]


def test_a_folder_without_a_model_is_refused(folder, tmp_path):
  with pytest.raises(
    vision_negatives.UserError, match="--clip: expected a CLIP"
  ):
    vision_negatives.clip(str(tmp_path))
  with pytest.raises(
    vision_negatives.UserError, match="a directory, found non"
  ):
    vision_negatives.clip(str(tmp_path / "none"))
