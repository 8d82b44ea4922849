"""The model agrees with itself: every route to a number gives that number.

90 core-seconds with `full`: gradients of whole models of three families.
"""

import contextlib
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl import models
from mmrl.models import decoding, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention, blocked
from mmrl.types import Prompt

ANSWERS, LENGTH = 2, 4
LAYERS = (0, -1)
# Families, and whether their output head is the embedding table.
TIED = {"qwen2_vl": True, "qwen2_5_vl": False, "qwen3_vl": True}
FAMILIES = small_models.one_family(TIED)
in_full = functools.partial(pytest.param, marks=pytest.mark.full)
# Two programs for one function add the same float32 numbers in another order.
# From pixels to logits a value passes 2 x 3 layers of 6 sums with up to 96
# terms: by the square root of so many roundings (59), of half an eps of a
# value of 4 each, one of several thousand values, five times that far from its
# mean, is off by 7e-5. Attention is in [0, 1]; its relative error is that of
# the scores, which come before the last layer.
LOGITS, ROWS = 1e-4, 2e-5
# A gradient passes the sums twice, relative to the largest of its array.
GRADIENT = 1e-4
PROMPTS = len(small_models.mixed())
# Room for the patches of each prompt and for all of them together, per prompt.
PATCHES = (64,)


@dataclasses.dataclass(frozen=True)
class Case:
  """A small model and prompts of text, pictures and videos.

  Attributes:
    prompt: each prompt's pictures in a row of their own.
    packed: the same prompts, all pictures in one row.
    tokens: answers.
  """

  config: ModelConfig
  params: dict
  prompt: Prompt
  packed: Prompt
  tokens: np.ndarray


@functools.cache
def make_case(family: str) -> Case:
  config = small_models.small_config(family=family, tied=TIED[family])
  shape = (PROMPTS, ANSWERS, LENGTH)
  tokens = np.random.RandomState(0).randint(0, 256, shape, np.int32)
  return Case(
    config,
    small_models.make_params(config),
    process(config, small_models.mixed(), rows=PROMPTS),
    process(config, small_models.mixed(), rows=1),
    tokens,
  )


def process(config: ModelConfig, chats: list, rows: int) -> Prompt:
  processor = small_models.make_processor(config)
  return processor(chats, lengths=(96,), patches=PATCHES, rows=rows)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request) -> Case:
  return make_case(request.param)


@pytest.fixture(scope="module")
def untied() -> Case:
  return make_case("qwen2_5_vl")


def extended(
  params, config, prompt, tokens, attention_layers=LAYERS, visual=None
):
  """(logits that emit each answer token, its rows, the row before them)."""
  if visual is None:
    visual = models.vision(params, config, prompt.patches)
  prefix = models.prefill(
    params, config, prompt, visual, attention_layers=attention_layers
  )
  inputs = models.embed(params, config, tokens)
  output = models.extend(
    params, config, prefix, inputs, attention_layers=attention_layers
  )
  first = prefix.last_hidden[:, None, None]
  first = jnp.broadcast_to(first, (*tokens.shape[:2], 1, first.shape[-1]))
  hidden = jnp.concatenate([first, output.hidden], axis=2)
  logits = models.logits(params, config, hidden)
  # The row of the last prompt token is the first of "emit".
  emit = models.attention_policy(output.attention, row="emit")
  last_row = models.attention_rows(emit, 0, 1)[:, 0, 0, : -tokens.shape[-1]]
  return logits, models.attention_rows(output.attention), last_row


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


@pytest.mark.parametrize(
  "attention_layers", [LAYERS, in_full((-1,)), in_full((0, 1, 2))]
)
def test_extend_is_apply(case, attention_layers):
  full = small_models.full_rows(case.prompt, case.tokens)
  ours = run(
    case.params, case.config, case.prompt, case.tokens, attention_layers
  )
  output = apply(case.params, case.config, full, attention="all")
  theirs = rows_of(output, case.tokens.shape, attention_layers)
  tolerances = {"logits": LOGITS, "rows": ROWS, "last row": ROWS}
  for (name, atol), one, other in zip(
    tolerances.items(), ours, theirs, strict=True
  ):
    np.testing.assert_allclose(one, other, atol=atol, rtol=0, err_msg=name)
  np.testing.assert_allclose(ours[1].sum(-1), 1, rtol=1e-5)
  # The comparison says little where attention is uniform.
  visible = (ours[1] > 0).sum(-1)
  assert (ours[1].max(-1) * visible).max() > 4


# Other routes to the same gradient.
ROUTES = {
  "packed": "all pictures in one row",
  "kept": "activations of the forward pass are kept, not computed again",
  "unrolled": "layer after layer in place of a scan over the layers",
  "blocks": "attention block by block, as over long sequences",
}


@functools.cache
def gradient(family: str, routes: tuple[str, ...] = ()):
  """Value and gradient of a loss on logits and rows, by `extend`."""
  assert set(routes) <= set(ROUTES)
  case = make_case(family)
  config = dataclasses.replace(case.config, remat="kept" not in routes)
  prompt = case.packed if "packed" in routes else case.prompt

  def loss(params):
    return weigh(extended(params, config, prompt, jnp.asarray(case.tokens)))

  assert not vlm.unrolled(case.params)
  with contextlib.ExitStack() as stack:
    if "unrolled" in routes:
      stack.enter_context(mock.patch.object(vlm, "_UNROLLED_BYTES", 2**28))
    if "blocks" in routes:
      stack.enter_context(mock.patch.object(attention, "DENSE_VALUES", 0))
      stack.enter_context(mock.patch.object(blocked, "_side", lambda: 24))
    return jax.jit(jax.value_and_grad(loss))(case.params)


def weigh(outputs):
  """A scalar to which every output contributes, none with the same weight."""
  rng = np.random.RandomState(1)
  return sum(
    jnp.vdot(x, rng.randn(*x.shape).astype(np.float32)) / np.sqrt(x.size)
    for x in outputs
  )


def check_same_gradient(one, other):
  np.testing.assert_allclose(one[0], other[0], rtol=1e-4)
  ours, theirs = map(jax.tree_util.tree_leaves_with_path, (one[1], other[1]))
  for (path, leaf), (_, wanted) in zip(ours, theirs, strict=True):
    name, scale = jax.tree_util.keystr(path), np.abs(wanted).max()
    assert scale > 0, name
    np.testing.assert_allclose(
      leaf, wanted, atol=GRADIENT * scale, rtol=0, err_msg=name
    )


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_extend_is_that_of_full_rows(family):
  """All leaves, vision too, through both the logits and the rows."""
  case = make_case(family)
  full = small_models.full_rows(case.prompt, case.tokens)

  def loss(params):
    output = models.apply(params, case.config, full, attention="all")
    return weigh(rows_of(output, case.tokens.shape))

  theirs = jax.jit(jax.value_and_grad(loss))(case.params)
  check_same_gradient(gradient(family), theirs)


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_all_other_routes_at_once_change_no_gradient(family):
  check_same_gradient(gradient(family, tuple(ROUTES)), gradient(family))


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_long_sequences_with_padding_on_the_right(family):
  """Attention block by block."""
  case = make_case(family)
  right = small_models.to_the_left(case.prompt)
  args = case.params, case.config, right, jnp.asarray(case.tokens)
  wanted = run(*args)
  with (
    mock.patch.object(attention, "DENSE_VALUES", 0),
    mock.patch.object(blocked, "_side", lambda: 24),
  ):
    found = jax.jit(lambda *arrays: extended(*args, visual=arrays[0]))(
      vision(case.params, case.config, right.patches)
    )
  for one, other, atol in zip(
    found[:2], wanted[:2], (LOGITS, ROWS), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=atol, rtol=0)


def test_decode_is_extend(case):
  """Token by token through the cache, in a cache longer than the answer."""
  params, config, tokens = case.params, case.config, case.tokens
  visual = vision(params, config, case.prompt.patches)
  prefix = jax.jit(models.prefill, static_argnums=1)(
    params, config, case.prompt, visual
  )
  whole = jax.jit(models.extend, static_argnums=1)(
    params, config, prefix, models.embed(params, config, jnp.asarray(tokens))
  )
  decoder = decoding.take_apart(params, prefix)
  cache = decoding.empty_cache(decoder, ANSWERS, LENGTH)
  cache = decoding.lengthen(cache, LENGTH + 3)
  step = jax.jit(models.decode, static_argnums=1)
  for t in range(LENGTH):
    hidden, cache = step(
      params, config, prefix, decoder, cache, tokens[:, :, t]
    )
    np.testing.assert_allclose(
      hidden, whole.hidden[:, :, t], atol=LOGITS, rtol=0
    )
  assert cache.length == LENGTH


@pytest.mark.full
def test_hidden_states_of_chosen_layers(case):
  """The first layer's are those of a model of one layer; the last's emit."""
  depth = case.config.text.num_hidden_layers
  text = dataclasses.replace(case.config.text, num_hidden_layers=1)
  one = dataclasses.replace(case.config, text=text)
  first = case.params["text"] | {
    "layers": jax.tree.map(lambda x: x[:1], case.params["text"]["layers"])
  }

  @functools.partial(jax.jit, static_argnums=(1, 2))
  def run(params, config, hidden_layers, visual, scale):
    """Inputs that are no token's embedding."""
    prefix = models.prefill(
      params, config, case.prompt, visual, hidden_layers=hidden_layers
    )
    inputs = scale * models.embed(params, config, jnp.asarray(case.tokens))
    output = models.extend(
      params, config, prefix, inputs, hidden_layers=hidden_layers
    )
    last = vlm.final_norm(params, config, output.hidden_at[..., -1, :])
    return prefix.hidden_at, output.hidden_at, output.hidden, last

  visual = vision(case.params, case.config, case.prompt.patches)
  arguments = visual, jnp.float32(1.1)
  on_prompt, on_answers, hidden, last = run(
    case.params, case.config, (0, -1), *arguments
  )
  np.testing.assert_allclose(last, hidden, atol=LOGITS, rtol=0)
  wanted = run(case.params | {"text": first}, one, (0,), *arguments)
  assert depth > 1 and on_prompt.shape[:2] == case.prompt.mask.shape
  real = np.asarray(case.prompt.mask)
  for ours, theirs, rows in (
    (on_prompt, wanted[0], real),
    (on_answers, wanted[1], np.ones(on_answers.shape[:3], bool)),
  ):
    ours, theirs = np.asarray(ours)[rows], np.asarray(theirs)[rows]
    assert ours.shape[-2:] == (2, case.config.text.hidden_size)
    np.testing.assert_allclose(
      ours[..., 0, :], theirs[..., 0, :], atol=LOGITS, rtol=0
    )
    assert np.abs(ours[..., 1, :] - ours[..., 0, :]).max() > 0.1


@pytest.mark.parametrize(
  "change", [in_full("left"), in_full("right"), "both", "right padded"]
)
def test_padding_changes_nothing(case, change):
  old = case.prompt
  new = {
    "left": lambda: small_models.pad_prompt(old, left=5),
    "right": lambda: small_models.pad_prompt(old, right=5),
    "both": lambda: small_models.pad_prompt(old, left=2, right=3, patches=8),
    "right padded": lambda: small_models.to_the_left(old),
  }[change]()
  check_same_rows(case, new, range(PROMPTS))


@pytest.mark.full
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 3, 1, 0)])
@pytest.mark.parametrize("rows", [1, in_full(2)])
def test_pictures_packed_together_do_not_mix(case, order, rows):
  """Whatever stands before and behind them, and however many rows."""
  chats = small_models.mixed()
  new = process(case.config, [chats[i] for i in order], rows)
  assert len(new.patches.pixels) == rows
  check_same_rows(case, new, order)


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_any_mix_runs_the_same_program(family):
  """Text, pictures, videos: what is in a batch isn't compiled into it."""
  config, chats = small_models.small_config(family=family), small_models.mixed()
  params = make_case(family).params

  @jax.jit
  def program(params, prompt):
    visual = models.vision(params, config, prompt.patches)
    return models.prefill(params, config, prompt, visual).last_hidden

  for places in ((0, 1), (2, 2), (3, 2), (1, 3)):
    program(params, process(config, [chats[i] for i in places], rows=1))
  assert program._cache_size() == 1


def check_same_rows(case: Case, new: Prompt, rows):
  """Every real token of prompt `rows[i]` is in row i of `new` what it was."""
  args, rows = (case.params, case.config), list(rows)
  before = run(*args, case.prompt, case.tokens)
  after = run(*args, new, case.tokens[rows])
  answer = np.ones(LENGTH, bool)
  for i, row in enumerate(rows):
    was, now = case.prompt.mask[row], new.mask[i]
    np.testing.assert_allclose(after[0][i], before[0][row], atol=LOGITS, rtol=0)
    was_row, now_row = np.append(was, answer), np.append(now, answer)
    np.testing.assert_allclose(
      after[1][i][..., now_row],
      before[1][row][..., was_row],
      atol=ROWS,
      rtol=0,
    )
    np.testing.assert_allclose(
      after[2][i][now], before[2][row][was], atol=ROWS, rtol=0
    )
    assert not np.any(after[1][i][..., ~now_row])
    assert not np.any(after[2][i][~now])


@pytest.mark.full
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


@pytest.mark.full
def test_init_is_as_published():
  """normal(0.02) matrices, unit norms, no biases."""
  config = small_models.small_config(tied=False)
  config = dataclasses.replace(
    config,
    text=dataclasses.replace(config.text, num_hidden_layers=1),
    vision=dataclasses.replace(config.vision, depth=1),
  )
  params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), config)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key in ("kernel", "embedding"):
      np.testing.assert_allclose(leaf.std(), 0.02, rtol=0.1)
    else:
      assert (leaf == {"scale": 1, "bias": 0}[path[-1].key]).all()


def test_apply_refuses_other_attention(untied):
  with pytest.raises(ValueError, match="'none' or 'all', got 'some'"):
    models.apply(untied.params, untied.config, untied.prompt, attention="some")
