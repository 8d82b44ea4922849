"""Live comparison of U-Net, control branch and DDIM with diffusers' classes.

Needs diffusers, of the extra `parity`; without it this is skipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from mmrl.diffusion import ddim
from mmrl.diffusion.network import unet
from mmrl.diffusion.network.unet import UNetConfig

pytestmark = pytest.mark.parity

CONFIG = UNetConfig(
  size=8,
  patch=1,
  channels=(16, 32, 32),
  attention=(True, False, True),
  layers=2,
  heads=2,
  groups=4,
  text_width=12,
  condition_width=6,
)
BATCH = 2


@pytest.fixture(scope="module")
def theirs():
  """U-Net and branch, all of whose parameters are drawn."""
  torch.manual_seed(0)
  kinds = [
    "CrossAttnDownBlock2D" if x else "DownBlock2D" for x in CONFIG.attention
  ]
  common = {
    "in_channels": 3,
    "block_out_channels": CONFIG.channels,
    "down_block_types": kinds,
    "layers_per_block": CONFIG.layers,
    "attention_head_dim": CONFIG.heads,
    "norm_num_groups": CONFIG.groups,
    "cross_attention_dim": CONFIG.text_width,
  }
  model = diffusers.UNet2DConditionModel(
    sample_size=CONFIG.size,
    out_channels=3,
    up_block_types=[x.replace("Down", "Up") for x in reversed(kinds)],
    **common,
  )
  branch = diffusers.ControlNetModel(
    conditioning_channels=1,
    conditioning_embedding_out_channels=(CONFIG.condition_width,),
    **common,
  )
  with torch.no_grad():
    for parameter in [*model.parameters(), *branch.parameters()]:
      parameter.add_(0.05 * torch.randn(parameter.shape))
  return model.eval(), branch.eval()


def ours(module) -> dict:
  """A state dict with kernels as they are here: inputs, then outputs, last."""
  order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
  return {
    name: jnp.asarray(value.detach().numpy().transpose(order[value.ndim]))
    for name, value in module.state_dict().items()
  }


def test_names_and_shapes_are_theirs(theirs):
  drawn = jax.eval_shape(lambda: unet.init(jax.random.key(0), CONFIG))
  for part, module in zip(("unet", "control"), theirs, strict=True):
    shapes = {name: value.shape for name, value in ours(module).items()}
    assert {name: x.shape for name, x in drawn[part].items()} == shapes


def test_the_noise_is_theirs(theirs):
  model, branch = theirs
  generator = np.random.default_rng(0)

  def normal(*shape):
    return generator.normal(size=shape).astype("float32")

  x, masks = normal(BATCH, 8, 8, 3), normal(BATCH, 8, 8, 1)
  words = normal(CONFIG.words, CONFIG.text_width)
  asked, time = np.array([[1, 8], [0, 0]]), np.array([7, 961])
  params = {
    "unet": ours(model),
    "control": ours(branch),
    "words": {"weight": jnp.asarray(words)},
  }
  found = jax.jit(unet.noise, static_argnums=1)(
    params, CONFIG, *map(jnp.asarray, (x, time, masks, asked))
  )
  first, second = (torch.tensor(a.transpose(0, 3, 1, 2)) for a in (x, masks))
  times, prompt = torch.tensor(time), torch.tensor(words[asked])
  with torch.no_grad():
    down, middle = branch(
      first,
      times,
      encoder_hidden_states=prompt,
      controlnet_cond=second,
      return_dict=False,
    )
    expected = model(
      first,
      times,
      encoder_hidden_states=prompt,
      down_block_additional_residuals=down,
      mid_block_additional_residual=middle,
    ).sample
  expected = expected.numpy().transpose(0, 2, 3, 1)
  # Float32 through fifty layers; values are about 1.
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_steps_are_theirs():
  scheduler = diffusers.DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    timestep_spacing="trailing",
  )
  scheduler.set_timesteps(20)
  np.testing.assert_array_equal(ddim.times(20), scheduler.timesteps.numpy())
  x = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype("float32")
  mine, other = jnp.asarray(x), torch.tensor(x)
  levels = jnp.asarray(ddim.levels(20), jnp.float32)
  for time, level in zip(ddim.times(20), levels, strict=True):
    mine = ddim.move(mine, jnp.cos(mine), level)
    other = scheduler.step(torch.cos(other), int(time), other).prev_sample
  np.testing.assert_allclose(mine, other.numpy(), rtol=2e-4, atol=2e-4)
