"""What bfloat16 does to log-probabilities, here and in Transformers.

  pip install -e '.[examples,parity]'
  python -m experiments.bench.precision

Answers to easy-VQA test questions are sampled in float32; both libraries score
them in float32 and, with weights and products in bfloat16, again. Prints one
JSON line a model: `ours` and `theirs` are the shares of answer tokens whose
probability in bfloat16 leaves +-10 % of the one in float32, `float32` is the
largest difference of a log-probability between the libraries there. The first
model is the shipped one; the others are random ones of each family.
"""

import argparse
import dataclasses
import json
import tempfile

import jax
import numpy as np
import torch
import transformers

from experiments import tiny_model
from mmrl import data, hub
from mmrl.probes.scores import Scorer
from mmrl.rollouts import sampler
from mmrl.types import Prompt

# Changes of the shipped model that make a decoder and a tower of each family.
_PLAIN = {"norm": "layer", "gated_mlp": False, "window_size": 0}
_PLAIN |= {"fullatt_block_indexes": (), "tokens_per_second": 0}
_FAMILIES = {
  "qwen2_vl": ({}, _PLAIN | {"hidden_act": "quick_gelu"}),
  "qwen2_5_vl": ({}, {}),
  "qwen3_vl": (
    {"qkv_bias": False, "qk_norm": True, "mrope_interleaved": True},
    _PLAIN
    | {
      "hidden_act": "gelu_pytorch_tanh",
      "patch_bias": True,
      "position_grid": 8,
      "deepstack_visual_indexes": (0, 1),
    },
  ),
}
_WIDTH, _LAYERS = 256, 8


def random_model(family: str) -> hub.Model:
  """A wider and deeper decoder, with the shipped model's words."""
  shipped = hub.load("tiny")
  text, tower = _FAMILIES[family]
  config = dataclasses.replace(
    shipped.config,
    family=family,
    text=dataclasses.replace(
      shipped.config.text,
      hidden_size=_WIDTH,
      intermediate_size=3 * _WIDTH,
      num_hidden_layers=_LAYERS,
      head_dim=_WIDTH // 4,
      mrope_section=(_WIDTH // 8 - 20, 10, 10),
      **text,
    ),
    vision=dataclasses.replace(
      shipped.config.vision,
      intermediate_size=4 * shipped.config.vision.hidden_size,
      out_hidden_size=_WIDTH,
      **tower,
    ),
  )
  processor = dataclasses.replace(shipped.processor, config=config)
  params = jax.jit(tiny_model.init, static_argnums=1)(jax.random.key(0), config)
  return hub.Model(config, params, processor)


def ours(model: hub.Model, prompt: Prompt, tokens, dtype: str) -> np.ndarray:
  """Log-probabilities [P, R] of answers, as training computes them."""
  config = dataclasses.replace(model.config, dtype=dtype)
  params = jax.tree.map(lambda x: x.astype(dtype), model.params)
  scorer = Scorer(config, 1.0, (), "self")

  @jax.jit
  def score(params, prompt, tokens):
    prefix = scorer.prefill(params, prompt, None)
    return scorer(params, prefix, tokens).logprobs

  return np.asarray(score(params, prompt, tokens))[:, 0]


def theirs(path: str, encoded, prompt: Prompt, tokens, dtype: str):
  """The same by Transformers, one prompt and answer in a row."""
  model = transformers.AutoModelForImageTextToText.from_pretrained(
    path, dtype=getattr(torch, dtype)
  )
  tokens = np.asarray(tokens)[:, 0]
  ids = torch.from_numpy(np.concatenate([prompt.tokens, tokens], 1)).long()
  mask = np.pad(prompt.mask, ((0, 0), (0, tokens.shape[1])), constant_values=1)
  cuts = [cut for one in encoded for cut in one.cuts]
  pixels = torch.from_numpy(np.concatenate([cut.pixels for cut in cuts]))
  with torch.no_grad():
    logits = model(
      input_ids=ids,
      attention_mask=torch.from_numpy(mask).long(),
      mm_token_type_ids=(ids == model.config.image_token_id).int(),
      pixel_values=pixels.to(getattr(torch, dtype)),
      image_grid_thw=torch.tensor([cut.grid for cut in cuts]),
    ).logits.float()
  logits[
    ..., [model.config.image_token_id, model.config.video_token_id]
  ] = -1e30
  logs = logits[:, -tokens.shape[1] - 1 : -1].log_softmax(-1)
  chosen = torch.from_numpy(tokens).long()[..., None]
  return logs.gather(-1, chosen)[..., 0].numpy()


def measure(name: str, model: hub.Model, count: int, length: int) -> dict:
  """One row of the comparison."""
  source = data.EasyVQA(split="test")
  places = np.linspace(0, len(source) - 1, count).astype(int)
  examples = [source[int(i)] for i in places]
  encoded = [model.processor.encode(e.messages, e.name) for e in examples]
  prompt = model.processor.collate(encoded)

  @jax.jit
  def sample(params, prompt):
    return sampler.rollout(
      params,
      model.config,
      prompt,
      jax.random.key(0),
      answers=1,
      length=length,
      temperature=1.0,
    )

  rollout = sample(model.params, prompt)
  real = np.asarray(rollout.mask)[:, 0]
  with tempfile.TemporaryDirectory() as path:
    hub.save(model, path)
    logs = {
      (who, dtype): score(dtype)[real]
      for dtype in ("float32", "bfloat16")
      for who, score in {
        "ours": lambda dtype: ours(model, prompt, rollout.tokens, dtype),
        "theirs": lambda dtype: theirs(
          path, encoded, prompt, rollout.tokens, dtype
        ),
      }.items()
    }

  def outside(who: str) -> float:
    ratio = np.exp(logs[who, "bfloat16"] - logs[who, "float32"])
    return round(float(np.mean(np.abs(ratio - 1) > 0.1)), 4)

  exact = np.abs(logs["ours", "float32"] - logs["theirs", "float32"])
  return {
    "model": name,
    "tokens": int(real.sum()),
    "ours": outside("ours"),
    "theirs": outside("theirs"),
    "float32": float(exact.max()),
  }


def main() -> None:
  """Every model in turn."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--questions", type=int, default=256)
  parser.add_argument("--length", type=int, default=16, help="of an answer")
  flags = parser.parse_args()
  loaders = {"tiny": lambda: hub.load("tiny")} | {
    family: lambda family=family: random_model(family) for family in _FAMILIES
  }
  for name, load in loaders.items():
    row = measure(name, load(), flags.questions, flags.length)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
