"""Live comparison with Transformers: `python -m pytest -m parity`."""

import dataclasses

import jax
import numpy as np
import pytest
import small_models
from small_models import picture, user

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

from mmrl import models  # noqa: E402
from mmrl.rollout import sampler  # noqa: E402
from parity import oracle  # noqa: E402

pytestmark = pytest.mark.parity

CHATS = {
  "text": user("what is it?"),
  "one image": user(picture(23, 41, 1), "what is the colour?"),
  "three images": user(
    *("a", picture(24, 40, 1), picture(37, 19, 2)),
    *("and", picture(90, 131, 3), "?"),
  ),
  "two turns": [
    *user("look", picture(16, 24, 4), "yes or no?"),
    {"role": "assistant", "content": "yes"},
    *user(picture(33, 17, 5), "and now?"),
  ],
}
BATCHES = {name: [chat] for name, chat in CHATS.items()}
BATCHES["padded batch"] = list(CHATS.values())
NEW_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Pair:
  ours: models.Model
  theirs: oracle.Torch


@pytest.fixture(scope="module", params=["tied", "untied"])
def pair(request):
  config = small_models.small_config(tied=request.param == "tied")
  return Pair(small_models.make_model(config), oracle.make_torch(config))


@pytest.fixture(scope="module", params=BATCHES)
def batch(request):
  return BATCHES[request.param]


@pytest.fixture(scope="module")
def prepared(pair, batch):
  """(our prompt, their inputs, mask of real tokens, their length)."""
  prompt = pair.ours.processor(batch)
  inputs = oracle.make_inputs(pair.ours.config, batch)
  mask = inputs["attention_mask"].bool().numpy()
  return prompt, inputs, mask, mask.shape[1]


def test_tokens_pixels_and_positions(pair, prepared):
  prompt, inputs, mask, count = prepared
  np.testing.assert_array_equal(prompt.mask[:, -count:], mask)
  np.testing.assert_array_equal(
    prompt.tokens[:, -count:][mask], inputs["input_ids"].numpy()[mask]
  )
  positions = oracle.positions(pair.theirs, inputs)
  np.testing.assert_array_equal(
    prompt.positions[:, -count:][mask], positions[mask]
  )
  pixels = prompt.patches.pixels[prompt.patches.image >= 0]
  if "pixel_values" in inputs:
    np.testing.assert_array_equal(pixels, inputs["pixel_values"].numpy())
  else:
    assert len(pixels) == 0


def test_logits_and_attention(pair, prepared):
  prompt, inputs, mask, count = prepared
  apply = jax.jit(models.apply, static_argnums=1, static_argnames="attention")
  output = apply(pair.ours.params, pair.ours.config, prompt, attention="all")
  logits, attention = oracle.outputs(pair.theirs, inputs)
  ours = np.asarray(output.logits)[:, -count:]
  np.testing.assert_allclose(ours[mask], logits[mask], atol=1e-4)
  ours = np.asarray(output.attention)[..., -count:, -count:]
  ours, theirs = (
    np.moveaxis(x, (1, 3), (0, 1))[mask] for x in (ours, attention)
  )
  assert theirs.shape[1:3] == (3, 4)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_greedy_generation(pair, prepared):
  """Token for token, though the end of sequence may come at any time."""
  prompt, inputs, *_ = prepared
  config = pair.ours.config

  @jax.jit
  def generate(params, prompt):
    return sampler.rollout(
      params,
      config,
      prompt,
      jax.random.key(0),
      answers=1,
      length=NEW_TOKENS,
      temperature=0.0,
    )

  rollout = generate(pair.ours.params, prompt)
  theirs = pair.theirs.generate(
    **inputs,
    do_sample=False,
    max_new_tokens=NEW_TOKENS,
    eos_token_id=config.eos_token_id,
    pad_token_id=config.pad_token_id,
    suppress_tokens=list(config.banned_token_ids),
  )
  theirs = theirs[:, inputs["input_ids"].shape[1] :].numpy()
  ours = np.asarray(rollout.tokens)[:, 0]
  assert (ours[:, theirs.shape[1] :] == config.pad_token_id).all()
  np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)


def test_saved_model_loads_in_transformers(pair, tmp_path):
  models.save(pair.ours, tmp_path)
  loaded, info = oracle.Torch.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(info.values()), info
  state = loaded.state_dict()
  wanted = pair.theirs.state_dict()
  assert set(state) == set(wanted)
  for name, tensor in wanted.items():
    assert torch.equal(state[name], tensor), name
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = pair.ours.processor.tokenizer
  assert tokenizer.get_vocab() == ours.get_vocab()
  assert tokenizer.chat_template == ours.chat_template
  processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
  assert processor.patch_size == pair.ours.config.vision.patch_size
  assert processor.size["longest_edge"] == small_models.PICTURE.max_pixels


def test_a_model_saved_by_transformers_loads_here(pair, tmp_path):
  pair.theirs.save_pretrained(tmp_path)
  pair.ours.processor.save(tmp_path)
  loaded = models.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, pair.ours.params)
  kept = ("text", "vision", "tie_word_embeddings")
  for name in kept:
    assert getattr(loaded.config, name) == getattr(pair.ours.config, name)
