"""The model, DDIM, sampling with caches, and their MACs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.diffusion import cache, ddim, macs, plan, shapes
from mmrl.diffusion.network import layers, unet
from mmrl.diffusion.network.unet import UNetConfig
from mmrl.diffusion.plan import HGCConfig
from mmrl.errors import UserError

SMALL = UNetConfig(
  size=8, channels=(8, 8), heads=2, groups=4, text_width=4, condition_width=4
)
# Of experiments/diffusion/shapes.py.
DEFAULT = UNetConfig(channels=(24, 48))
STEPS = 4
BLOCKS = {"steps": STEPS, "encoder_blocks": 3, "decoder_blocks": 2}
init = jax.jit(unet.init, static_argnums=1)
CACHED = plan.plan(HGCConfig((0, 2), (0, 3), 2, (0.5, 1.0), 0.5), **BLOCKS)


@pytest.fixture(scope="module")
def params():
  """Drawn; what begins as zeros isn't any more."""
  found = init(jax.random.key(0), SMALL)
  leaves, tree = jax.tree.flatten(found)
  generator = np.random.default_rng(0)
  return tree.unflatten(
    [x + 0.1 * generator.normal(size=x.shape).astype("float32") for x in leaves]
  )


@pytest.fixture(scope="module")
def given():
  drawn = shapes.draw(jax.random.key(1), 2, SMALL.size)
  noise = jax.random.normal(jax.random.key(2), drawn.pictures.shape)
  return noise, drawn.masks, drawn.words


@pytest.mark.full
def test_the_branch_begins_as_a_copy_and_adds_nothing(given):
  found = init(jax.random.key(0), SMALL)
  for name, value in found["control"].items():
    if name in found["unet"]:
      np.testing.assert_array_equal(value, found["unet"][name])
  time = jnp.array([3, 500])
  noise, masks, words = given
  run = jax.jit(unet.noise, static_argnums=1)
  one, other = (
    run(found, SMALL, noise, time, m, words) for m in (masks, -masks)
  )
  np.testing.assert_array_equal(one, other)


def test_guidance_exaggerates_what_a_prompt_changes():
  found = ddim.guided(jnp.array([0.1, 0.2]), jnp.array([0.3, 0.1]), 7.5)
  np.testing.assert_allclose(found, [1.6, -0.55], rtol=1e-6)


def test_branches_are_fused_by_their_mean():
  cached = jnp.arange(8.0).reshape(4, 2, 1)
  found = cache.fuse_branches(cached)
  np.testing.assert_array_equal(found[..., 0], [[2, 3], [4, 5]])


def test_ddim_finds_the_picture_if_the_noise_is_right():
  picture, noise = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 3))
  levels = jnp.asarray(ddim.levels(7), jnp.float32)
  assert ddim.times(20)[[0, -1]].tolist() == [999, 49]
  x = jnp.sqrt(levels[0, 0]) * picture + jnp.sqrt(1 - levels[0, 0]) * noise
  for level in levels:
    x = ddim.move(x, noise, level)
  # Float32, and a first level of which little of the picture is left.
  np.testing.assert_allclose(x, picture, atol=1e-4)


@pytest.mark.full
def test_computing_everything_is_bit_for_bit_no_cache(params, given):
  """Operation by operation: one compiled program may round as another not."""
  noise, masks, words = (x[:1] for x in given)
  inputs = params, SMALL, noise, masks, words
  two = dict(BLOCKS, steps=2)
  del two["steps"]
  with jax.disable_jit():
    plain = ddim.sample(*inputs, steps=2, weight=2.0)
    cached = cache.sample(*inputs, plan=plan.full(2, **two), weight=2.0)
  np.testing.assert_array_equal(plain, cached)


@pytest.fixture(scope="module")
def plain(params, given):
  run = functools.partial(ddim.sample, steps=STEPS, weight=2.0)
  return jax.jit(run, static_argnums=1)(params, SMALL, *given)


@pytest.mark.full
def test_compiled_programs_agree_too(params, given, plain):
  everything = plan.full(STEPS, 3, 2)
  found = cache.sample(params, SMALL, *given, plan=everything, weight=2.0)
  # Float32 sums in another order, through four steps.
  np.testing.assert_allclose(found, plain, rtol=1e-4, atol=2e-4)


@pytest.mark.full
def test_a_cache_is_never_read_before_it_is_written(params, given, plain):
  """It is NaN before; what is read later isn't what computing would give."""
  found = cache.sample(params, SMALL, *given, plan=CACHED, weight=2.0)
  assert np.isfinite(found).all()
  assert np.abs(found - plain).max() > 1e-3


@pytest.mark.full
def test_what_never_changes_can_be_read_as_well(params, given):
  """A network without time, of pictures that are frozen, is cached exactly."""
  unmoving = jax.tree.map(lambda x: x, params)
  for part in ("unet", "control"):
    for name in unmoving[part]:
      # Neither the time nor the noisy picture gets in.
      if "time_embedding" in name or name == "conv_in.weight":
        unmoving[part][name] = jnp.zeros_like(params[part][name])
  noise, masks, words = given
  inputs = unmoving, SMALL, noise, masks, jnp.zeros_like(words)
  every = plan.full(STEPS, 3, 2)
  found = [
    cache.sample(*inputs, plan=one, weight=2.0) for one in (every, CACHED)
  ]
  np.testing.assert_allclose(*found, atol=2e-4)


@pytest.fixture(scope="module")
def cost():
  return macs.costs(SMALL)


@pytest.mark.full
def test_macs_are_those_of_the_layers_that_are_computed(
  params, given, cost, monkeypatch
):
  """Step by step in Python, where each layer that runs counts its own."""
  counted = []

  def counts(name, macs_of):
    function = getattr(layers, name)

    def run(p, place, x, *arguments, **options):
      out = function(p, place, x, *arguments, **options)
      counted.append(macs_of(x, out, *arguments, **options))
      return out

    monkeypatch.setattr(layers, name, run)

  def of_conv(x, out, width, side=3, stride=1):
    return out.size * side**2 * x.shape[-1]

  def of_attention(x, out, of, heads):
    # Scores, and the mean of values; projections count by themselves.
    return 2 * x.size * of.shape[1]

  counts("conv", of_conv)
  counts("dense", lambda x, out, width, **_: out.size * x.shape[-1])
  counts("attention", of_attention)
  noise, masks, words = (x[:1] for x in given)
  with jax.disable_jit():
    cache.sample(params, SMALL, noise, masks, words, plan=CACHED, weight=2.0)
  # The shapes of the cache are those of a step that computes everything.
  shapes_of_it = macs.macs(plan.full(1, 3, 2), cost)
  assert sum(counted) - shapes_of_it == macs.macs(CACHED, cost)


@pytest.mark.full
def test_macs_of_the_blocks_are_those_that_xla_counts():
  """It also counts what isn't a product, which is some percent."""
  cost = macs.costs(DEFAULT)
  params = jax.eval_shape(lambda: unet.init(jax.random.key(0), DEFAULT))
  side, (first, *_) = DEFAULT.size // DEFAULT.patch, DEFAULT.channels
  shape = jax.ShapeDtypeStruct
  time = shape((1, 4 * first), "float32")
  prompt = shape((1, 2, DEFAULT.text_width), "float32")

  def check(ours, function, *arguments):
    lowered = jax.jit(function).lower(*arguments)
    assert 1 <= lowered.cost_analysis()["flops"] / (2 * ours) < 1.25, function
    return jax.eval_shape(function, *arguments)

  def encode(params, x, time, prompt, i):
    p = layers.taken(params["unet"])
    start = [] if i else [unet.enter(p, DEFAULT, x)]
    x = (*start, x)[0]
    return start + unet.encoder_block(p, DEFAULT, i, x, time, prompt)

  def decode(params, x, share, time, prompt, i):
    p = layers.taken(params["unet"])
    return unet.decoder_block(p, DEFAULT, i, x, share, time, prompt)

  def branch(params, x, masks, times, prompt):
    p = layers.taken(params["control"])
    return unet.control(p, DEFAULT, x, masks, times, prompt)

  picture = shape((1, DEFAULT.size, DEFAULT.size, 3), "float32")
  masks = shape((1, DEFAULT.size, DEFAULT.size, 1), "float32")
  check(
    cost.control, branch, params, picture, masks, shape((1,), "int32"), prompt
  )
  features = [picture]
  for i, ours in enumerate(cost.encoder):
    function = functools.partial(encode, i=i)
    features += check(ours, function, params, features[-1], time, prompt)
  *features, x = features[1:]
  assert features[0].shape == (1, side, side, first)
  back = features[::-1]
  for i, share in enumerate((back[:2], back[2:])):
    function = functools.partial(decode, i=i)
    x = check(cost.decoder[i], function, params, x, share, time, prompt)


@pytest.mark.full
def test_a_plan_of_another_model_is_refused(params, given):
  other = plan.full(STEPS, 4, 3)
  with pytest.raises(UserError, match="model's 3 blocks of the encoder and 2"):
    cache.sample(params, SMALL, *given, plan=other, weight=2.0)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"size": 10}, "model.size: expected a multiple of 4"),
    ({"size": 0}, "model.size: expected a whole number from 1"),
    ({"channels": (24, 20)}, "model.channels: expected multiples of 8"),
    ({"channels": ()}, "model.attention: expected"),
    ({"attention": (True,)}, "model.attention: expected"),
    ({"heads": 5}, "model.channels: expected multiples of 8 groups and of 5"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(UNetConfig(), **fields)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_there_is_not_is_refused(steps):
  with pytest.raises(UserError, match="steps: expected a whole number"):
    ddim.times(steps)


@pytest.mark.full
def test_shapes_are_read_as_they_were_drawn():
  drawn = shapes.draw(jax.random.key(3), 40, 16)
  found = shapes.measure(*drawn)
  assert found["iou"].min() == found["prompt"].min() == 1
  # Another mask, and another prompt.
  other = shapes.measure(
    drawn.pictures, jnp.roll(drawn.masks, 5, 1), jnp.roll(drawn.words, 1, 0)
  )
  assert other["iou"].mean() < 0.6 and other["prompt"].mean() < 0.5
  assert shapes.psnr(drawn.pictures, drawn.pictures).min() == 100
  half = jnp.full((1, 2, 2, 3), 0.5)
  # 10 log10(2^2 / 0.5^2)
  np.testing.assert_allclose(shapes.psnr(half, 0 * half), 12.0412, rtol=1e-5)
