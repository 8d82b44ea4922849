"""Live comparison with Transformers: `python -m pytest -m parity`.

Three families, tied and untied, each alone in its padding and all prompts in
one batch: what the processors make of a conversation, what the models make of
that, and what they say to it.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import numpy as np
import pytest
import small_models
from small_models import clip, picture, user

torch = pytest.importorskip("torch")

from mmrl import hub, models
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts.packing import Encoded
from mmrl.rollouts import sampler
from mmrl.types import Batch, Output, Prompt
from parity import oracle

pytestmark = pytest.mark.parity


# One image and one video of sizes that are kept; the others are scaled.
CHATS = {
  "text": user("what is it?"),
  "one image": user(picture(24, 40, 1), "what is the colour?"),
  "three images": user(
    *("a", picture(25, 39, 1), picture(37, 19, 2)),
    *("and", picture(90, 131, 3), "?"),
  ),
  "video": user(clip(5, 16, 24, 1.5, 10), "what moves?"),
  "several videos": user(
    *("first", clip(4, 21, 29, 2.0, 20), "second", clip(7, 33, 18, 0.8, 30)),
    *(clip(2, 24, 24, 12.0, 40), "which?"),
  ),
  "image and video": user(
    picture(31, 17, 4), "in", clip(6, 25, 15, 3.0, 50), "when?"
  ),
  "two turns": [
    *user("look", picture(16, 24, 5), "yes or no?"),
    {"role": "assistant", "content": "yes"},
    *user(picture(33, 17, 6), clip(3, 16, 16, 1.0, 60), "and now?"),
  ],
}
BATCHES = {name: [name] for name in CHATS} | {"all in one batch": list(CHATS)}
# Of every prompt, so that each program is compiled once a batch size.
LENGTH, PATCHES = 256, 512
NEW_TOKENS = 64
# It ends some of the answers of every model, at different lengths.
EOS = 147
VIDEO = VideoConfig(min_pixels=64, max_pixels=2048)


@dataclasses.dataclass(frozen=True)
class Pair:
  ours: hub.Model
  theirs: oracle.Torch
  apply: Callable[[Prompt], Output]
  generate: Callable[[Prompt], Batch]


@dataclasses.dataclass(frozen=True)
class Case:
  """One batch, prepared by either library.

  Attributes:
    names: of its conversations.
    encoded, prompt: ours.
    inputs: theirs.
    mask: real tokens of `inputs`.
  """

  names: list[str]
  encoded: list[Encoded]
  prompt: Prompt
  inputs: dict
  mask: np.ndarray

  @property
  def count(self) -> int:
    """Their padded length."""
    return self.mask.shape[1]

  def pixels(self, kind: str) -> np.ndarray:
    cuts = [cut for e in self.encoded for cut in e.cuts if cut.kind == kind]
    return np.concatenate([cut.pixels for cut in cuts])

  def grids(self, kind: str) -> list[list[int]]:
    return [
      list(cut.grid) for e in self.encoded for cut in e.cuts if cut.kind == kind
    ]


@functools.cache
def make_pair(family: str, tied: bool) -> Pair:
  """Built, and compiled, once."""
  config = small_models.small_config(tied=tied, family=family)
  config = dataclasses.replace(config, eos_token_id=EOS)
  ours = small_models.make_model(config)
  ours = dataclasses.replace(
    ours, processor=dataclasses.replace(ours.processor, video=VIDEO)
  )

  @jax.jit
  def apply(params, prompt):
    return models.apply(params, config, prompt, attention="all")

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

  return Pair(
    ours=ours,
    theirs=oracle.make_torch(config),
    apply=lambda prompt: jax.tree.map(np.asarray, apply(ours.params, prompt)),
    generate=lambda prompt: generate(ours.params, prompt),
  )


@functools.cache
def make_case(family: str, tied: bool, batch: str) -> Case:
  names, processor = BATCHES[batch], make_pair(family, tied).ours.processor
  encoded = [processor.encode(CHATS[name], name) for name in names]
  inputs = oracle.make_inputs(processor, [CHATS[name] for name in names])
  return Case(
    names=names,
    encoded=encoded,
    prompt=processor.collate(encoded, lengths=[LENGTH], patches=[PATCHES]),
    inputs=inputs,
    mask=inputs["attention_mask"].bool().numpy(),
  )


@pytest.fixture(params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
  return request.param


@pytest.fixture
def pair(family, tied):
  return make_pair(family, tied)


@pytest.fixture(params=BATCHES)
def case(request, family, tied):
  return make_case(family, tied, request.param)


def test_tokens(case):
  prompt, count = case.prompt, case.count
  np.testing.assert_array_equal(prompt.mask[:, -count:], case.mask)
  assert not prompt.mask[:, :-count].any()
  np.testing.assert_array_equal(
    prompt.tokens[:, -count:][case.mask],
    case.inputs["input_ids"].numpy()[case.mask],
  )


@pytest.mark.parametrize(
  "kind, pixels, grids",
  [
    ("image", "pixel_values", "image_grid_thw"),
    ("video", "pixel_values_videos", "video_grid_thw"),
  ],
)
def test_grids_and_pixels(case, kind, pixels, grids):
  """Equal to the last bit, scaled or not."""
  if grids not in case.inputs:
    assert not case.grids(kind)
    return
  assert case.grids(kind) == case.inputs[grids].tolist()
  np.testing.assert_array_equal(case.pixels(kind), case.inputs[pixels].numpy())


def test_packed_pixels(case):
  """What the model reads is what was compared above, in order."""
  patches = case.prompt.patches
  real = patches.frame[..., 1] > patches.frame[..., 0]
  cuts = [cut.pixels for e in case.encoded for cut in e.cuts]
  assert real.sum() == sum(map(len, cuts))
  if cuts:
    np.testing.assert_array_equal(patches.pixels[real], np.concatenate(cuts))


def test_positions(pair, case):
  """Answers go on after the last token, as in `generate` and in one row.

  Only the deltas of `get_rope_index` go on after the largest position, which
  a long video may have: there Transformers differs from itself.
  """
  positions, deltas = oracle.positions(pair.theirs, case.inputs)
  np.testing.assert_array_equal(
    case.prompt.positions[:, -case.count :][case.mask], positions[case.mask]
  )
  np.testing.assert_array_equal(
    case.prompt.next_position, positions[:, -1].max(-1) + 1
  )
  ahead = positions.max((1, 2)) - positions[:, -1].max(-1)
  np.testing.assert_array_equal(
    case.prompt.next_position + ahead, deltas + case.mask.sum(1)
  )
  family = pair.ours.config.family
  long = family == "qwen2_5_vl" and "several videos" in case.names
  assert (ahead > 0).any() == long


def test_logits_and_attention(pair, case, record_property):
  mask, count = case.mask, case.count
  output = pair.apply(case.prompt)
  logits, attention = oracle.outputs(pair.theirs, case.inputs)
  ours, theirs = output.logits[:, -count:][mask], logits[mask]
  record_property("logits", float(np.abs(ours - theirs).max()))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
  # Rows of real tokens first: [tokens, layers, heads, keys].
  ours, theirs = (
    np.moveaxis(x, (1, 3), (0, 1))[mask]
    for x in (output.attention[..., -count:, :], attention)
  )
  config = pair.ours.config.text
  layers_heads = config.num_hidden_layers, config.num_attention_heads
  assert theirs.shape[1:3] == layers_heads
  assert not ours[..., :-count].any()
  ours = ours[..., -count:]
  record_property("attention", float(np.abs(ours - theirs).max()))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_greedy_generation(pair, case, record_property):
  """Token for token, though the end of sequence may come at any time."""
  config = pair.ours.config
  found = pair.theirs.generate(
    **case.inputs,
    do_sample=False,
    max_new_tokens=NEW_TOKENS,
    eos_token_id=config.eos_token_id,
    pad_token_id=config.pad_token_id,
    suppress_tokens=list(config.banned_token_ids),
  )
  theirs = found[:, case.count :].numpy()
  rollout = pair.generate(case.prompt)
  ours = np.asarray(rollout.tokens)[:, 0]
  lengths = np.asarray(rollout.mask)[:, 0].sum(1)
  record_property("lengths", lengths.tolist())
  np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
  assert (ours[:, theirs.shape[1] :] == config.pad_token_id).all()
  if len(case.names) == len(CHATS):
    assert (lengths == NEW_TOKENS).any()
    assert (lengths < NEW_TOKENS).any()
