"""The model agrees with itself: every route to a number gives that number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.models import decoding
from mmrl.models.config import ModelConfig, TextConfig, VisionConfig
from mmrl.types import Patches, Prompt

ANSWERS, LENGTH = 2, 4
LAYERS = (0, -1)


@dataclasses.dataclass(frozen=True)
class Case:
  config: ModelConfig
  params: dict
  prompt: Prompt
  tokens: np.ndarray


@pytest.fixture(scope="module", params=["tied", "untied"])
def case(request) -> Case:
  return make_case(tied=request.param == "tied")


@pytest.fixture(scope="module")
def untied() -> Case:
  return make_case(tied=False)


@functools.cache
def make_case(*, tied: bool) -> Case:
  config = small_models.small_config(tied=tied)
  processor = small_models.make_processor(config)
  chats = small_models.conversations()
  prompt = processor(chats, rows=len(chats))
  shape = (prompt.tokens.shape[0], ANSWERS, LENGTH)
  tokens = np.random.RandomState(0).randint(0, 256, shape, np.int32)
  params = small_models.make_params(config)
  return Case(config, params, prompt, tokens)


def extended(
  params, config, prompt, tokens, attention_layers=LAYERS, visual=None
):
  """(logits that emit each answer token, its rows, the row before them)."""
  if visual is None:
    visual = models.vision(params, config, prompt.patches)
  prefix = models.prefill(
    params, config, prompt, visual, attention_layers=attention_layers
  )
  output = models.extend(
    params, config, prefix, tokens, attention_layers=attention_layers
  )
  first = prefix.last_hidden[:, None, None]
  first = jnp.broadcast_to(first, (*tokens.shape[:2], 1, first.shape[-1]))
  hidden = jnp.concatenate([first, output.hidden], axis=2)
  logits = models.logits(params, config, hidden)
  return logits, output.attention, prefix.last_row


def rows_of(output, shape, attention_layers=LAYERS):
  """The same three from `apply` on P * G whole sequences."""
  prompts, answers, count = shape
  logits = output.logits[:, -count - 1 :]
  rows = output.attention[jnp.array(attention_layers)].mean((0, 2))
  rows = rows[:, -count - 1 :].reshape(prompts, answers, count + 1, -1)
  return (
    logits.reshape(prompts, answers, count + 1, -1),
    rows[:, :, 1:],
    rows[:, 0, 0, :-count],
  )


vision = jax.jit(models.vision, static_argnums=1)
apply = jax.jit(models.apply, static_argnums=1, static_argnames="attention")
_extended = jax.jit(extended, static_argnums=(1, 4))


def run(params, config, prompt, tokens, attention_layers=LAYERS):
  """`extended`, with the vision tower compiled apart and so less often."""
  visual = vision(params, config, prompt.patches)
  return _extended(
    params, config, prompt, jnp.asarray(tokens), attention_layers, visual
  )


@pytest.mark.parametrize("attention_layers", [LAYERS, (-1,), (0, 1, 2)])
def test_extend_is_apply(case, attention_layers):
  full = small_models.full_rows(case.prompt, case.tokens)
  ours = run(
    case.params, case.config, case.prompt, case.tokens, attention_layers
  )
  output = apply(case.params, case.config, full, attention="all")
  theirs = rows_of(output, case.tokens.shape, attention_layers)
  tolerances = {"logits": 2e-5, "rows": 2e-6, "last row": 2e-6}
  for (name, atol), one, other in zip(
    tolerances.items(), ours, theirs, strict=True
  ):
    np.testing.assert_allclose(one, other, atol=atol, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(ours[1].sum(-1), 1, rtol=1e-5)
  # The comparison says little where attention is uniform.
  visible = (ours[1] > 0).sum(-1)
  assert (ours[1].max(-1) * visible).max() > 4


@functools.cache
def gradient(*, tied: bool, remat: bool = True):
  """Value and gradient of a loss on logits and rows, by `extend`."""
  case = make_case(tied=tied)
  config = dataclasses.replace(case.config, remat=remat)

  def loss(params):
    return weigh(
      extended(params, config, case.prompt, jnp.asarray(case.tokens))
    )

  return jax.jit(jax.value_and_grad(loss))(case.params)


def weigh(outputs):
  """A scalar to which every output contributes, none with the same weight."""
  rng = np.random.RandomState(1)
  return sum(
    jnp.vdot(x, rng.randn(*x.shape).astype(np.float32)) / np.sqrt(x.size)
    for x in outputs
  )


def check_same_gradient(one, other, rtol):
  np.testing.assert_allclose(one[0], other[0], rtol=1e-4)
  ours, theirs = map(jax.tree_util.tree_leaves_with_path, (one[1], other[1]))
  for (path, leaf), (_, wanted) in zip(ours, theirs, strict=True):
    name, scale = jax.tree_util.keystr(path), np.abs(wanted).max()
    assert scale > 0, name
    np.testing.assert_allclose(leaf, wanted, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_extend_is_that_of_full_rows(tied):
  """All leaves, vision too, through both the logits and the rows."""
  case = make_case(tied=tied)
  full = small_models.full_rows(case.prompt, case.tokens)

  def loss(params):
    output = models.apply(params, case.config, full, attention="all")
    return weigh(rows_of(output, case.tokens.shape))

  theirs = jax.jit(jax.value_and_grad(loss))(case.params)
  check_same_gradient(gradient(tied=tied), theirs, 3e-5)


def test_remat_changes_nothing():
  plain = gradient(tied=False, remat=False)
  check_same_gradient(gradient(tied=False), plain, 1e-5)


def test_decode_is_extend(untied):
  """Token by token through the cache, in a cache longer than the answer."""
  params, config, tokens = untied.params, untied.config, untied.tokens
  visual = vision(params, config, untied.prompt.patches)
  prefix = jax.jit(models.prefill, static_argnums=1)(
    params, config, untied.prompt, visual
  )
  whole = jax.jit(models.extend, static_argnums=1)(
    params, config, prefix, tokens
  )
  cache = decoding.empty_cache(config, prefix, ANSWERS, LENGTH + 3)
  step = jax.jit(models.decode, static_argnums=1)
  for t in range(LENGTH):
    hidden, cache = step(params, config, prefix, cache, tokens[:, :, t])
    np.testing.assert_allclose(hidden, whole.hidden[:, :, t], atol=1e-5)
  assert cache.length == LENGTH


@pytest.mark.parametrize(
  "change", ["left", "right", "both", "patches", "right padded"]
)
def test_padding_changes_nothing(untied, change):
  old = untied.prompt
  new = {
    "left": lambda: small_models.pad_prompt(old, left=5),
    "right": lambda: small_models.pad_prompt(old, right=5),
    "both": lambda: small_models.pad_prompt(old, left=2, right=3),
    "patches": lambda: small_models.pad_prompt(old, patches=8),
    "right padded": lambda: small_models.to_the_left(old),
  }[change]()
  check_same_rows(untied, new, range(len(old.tokens)))


@pytest.mark.parametrize("rows", [(2, 0, 1), (1,), (0, 1, 0)])
def test_place_in_the_batch_changes_nothing(untied, rows):
  new = jax.tree.map(lambda x: x[list(rows)], untied.prompt)
  check_same_rows(untied, new, rows)


def check_same_rows(case: Case, new: Prompt, rows):
  args = case.params, case.config
  before = run(*args, case.prompt, case.tokens)
  after = run(*args, new, case.tokens[list(rows)])
  for i, row in enumerate(rows):
    was, now = case.prompt.mask[row], new.mask[i]
    np.testing.assert_allclose(after[0][i], before[0][row], atol=1e-5)
    answer = np.ones(LENGTH, bool)
    was_row, now_row = np.append(was, answer), np.append(now, answer)
    np.testing.assert_allclose(
      after[1][i][..., now_row], before[1][row][..., was_row], atol=1e-5
    )
    np.testing.assert_allclose(after[2][i][now], before[2][row][was], atol=1e-5)
    assert not np.any(after[1][i][..., ~now_row])
    assert not np.any(after[2][i][~now])


def test_earlier_outputs_have_no_gradient_to_later_tokens(untied):
  """Each token has an id, and so an embedding row, of its own."""
  params, config = untied.params, untied.config
  processor = small_models.make_processor(config)
  prompt = processor([small_models.user("ab")])
  count = int(prompt.mask.sum())
  ids = np.arange(10, 10 + count)
  tokens = np.where(prompt.mask, np.cumsum(prompt.mask) + 9, 0)
  prompt = dataclasses.replace(prompt, tokens=tokens.astype(np.int32))
  answer = np.arange(100, 100 + LENGTH)
  visual = jnp.zeros((1, 16, config.text.hidden_size))

  def with_table(table):
    embed = {"embedding": table}
    return params | {"text": params["text"] | {"embed": embed}}

  def whole(table):
    out = models.apply(with_table(table), config, prompt).hidden[0]
    return jnp.square(out[-count:]).sum(-1)

  def in_two(table):
    new = with_table(table)
    prefix = models.prefill(new, config, prompt, visual)
    out = models.extend(new, config, prefix, jnp.asarray(answer)[None, None])
    return jnp.square(out.hidden[0, 0]).sum(-1)

  table = params["text"]["embed"]["embedding"]
  reached = np.abs(jax.jit(jax.jacrev(whole))(table)).max(-1)[:, ids] > 0
  np.testing.assert_array_equal(reached, np.tri(count, dtype=bool))
  reached = np.abs(jax.jit(jax.jacrev(in_two))(table)).max(-1) > 0
  assert reached[:, ids].all()
  np.testing.assert_array_equal(reached[:, answer], np.tri(LENGTH, dtype=bool))


def test_bfloat16_is_close(untied):
  config = dataclasses.replace(untied.config, dtype="bfloat16")
  params, prompt = untied.params, untied.prompt
  exact = run(params, untied.config, prompt, untied.tokens)
  rough = run(params, config, prompt, untied.tokens)
  for one, other, atol in zip(rough, exact, (0.15, 0.02, 0.02), strict=True):
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, other, atol=atol)
  visual = jax.ShapeDtypeStruct((3, 16, 32), jnp.bfloat16)
  prefix = jax.eval_shape(
    lambda *args: models.prefill(params, config, *args), prompt, visual
  )
  assert prefix.keys.dtype == prefix.values.dtype == jnp.bfloat16


def test_visual_tokens_stand_at_their_placeholders(untied):
  """The first layer's values tell which embedding stands where."""
  params, config, prompt = untied.params, untied.config, untied.prompt
  visual = vision(params, config, prompt.patches)

  @jax.jit
  def values(visual):
    return models.prefill(params, config, prompt, visual).values[0]

  before = values(visual)
  holes = prompt.tokens == config.image_token_id
  np.testing.assert_array_equal(prompt.visual_index >= 0, holes)
  for token in (0, 3, 7, 14):
    after = values(visual.at[:, token].add(1.0))
    moved = np.any(after != before, axis=(2, 3))
    np.testing.assert_array_equal(moved, prompt.visual_index == token)


@pytest.mark.parametrize(
  "width, layers, heads, kv_heads, inner, vocab, tied, parameters",
  [
    (2048, 36, 16, 2, 11008, 151936, True, 3_754_622_976),
    (3584, 28, 28, 4, 18944, 152064, False, 8_292_166_656),
  ],
  ids=["3B", "7B"],
)
def test_shapes_of_published_models(
  width, layers, heads, kv_heads, inner, vocab, tied, parameters
):
  """Parameter counts are those of the published checkpoints."""
  config = ModelConfig(
    text=TextConfig(
      vocab, width, inner, layers, heads, kv_heads, 128, (16, 24, 24)
    ),
    vision=VisionConfig(32, 1280, 3420, 16, width),
    tie_word_embeddings=tied,
    image_token_id=151655,
    video_token_id=151656,
    vision_start_token_id=151652,
    vision_end_token_id=151653,
    eos_token_id=151645,
    pad_token_id=151643,
    dtype="bfloat16",
  )
  params = jax.eval_shape(lambda: models.init(jax.random.key(0), config))
  assert sum(x.size for x in jax.tree.leaves(params)) == parameters

  def shape(*dims, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(dims, dtype)

  prompt = Prompt(
    tokens=shape(2, 512),
    mask=shape(2, 512, dtype=bool),
    positions=shape(2, 512, 3),
    visual_index=shape(2, 512),
    next_position=shape(2),
    region=shape(2, 512, dtype=jnp.float32),
    patches=Patches(
      pixels=shape(2, 1024, 1176, dtype=jnp.float32),
      rows_columns=shape(2, 1024, 2),
      extent=shape(2, 1024, 2),
      frame=shape(2, 1024, 2),
      windows=shape(2, 32, 64),
      window_slot=shape(2, 1024),
    ),
  )

  def prefilled(params, prompt):
    visual = models.vision(params, config, prompt.patches)
    prefix = models.prefill(
      params, config, prompt, visual, attention_layers=(-1,)
    )
    return visual, prefix

  visual, prefix = jax.eval_shape(prefilled, params, prompt)
  assert visual.shape == (2, 256, width)
  assert prefix.keys.shape == (layers, 2, 512, kv_heads, width // heads)
  assert prefix.last_row.shape == (2, 512)
  output = jax.eval_shape(
    lambda *args: models.extend(
      args[0], config, *args[1:], attention_layers=(-1,)
    ),
    params,
    prefix,
    shape(2, 8, 64),
  )
  assert output.hidden.shape == (2, 8, 64, width)
  assert output.hidden.dtype == jnp.bfloat16
  assert output.attention.shape == (2, 8, 64, 512 + 64)
  assert output.attention.dtype == jnp.float32


def test_init_is_as_published():
  """normal(0.02) matrices, unit norms, no biases."""
  config = small_models.small_config(tied=False)
  params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key in ("kernel", "embedding"):
      np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.1)
    else:
      assert (leaf == {"scale": 1, "bias": 0}[path[-1].key]).all()


def test_apply_refuses_other_attention(untied):
  with pytest.raises(ValueError, match="'none' or 'all', got 'some'"):
    models.apply(untied.params, untied.config, untied.prompt, attention="some")
