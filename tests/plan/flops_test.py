"""The formula of model FLOPs, against XLA's own count of simple programs.

XLA counts the body of a loop once and of a condition the larger branch, so
scans are unrolled here, and towers with windows are one layer deep.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
import small_models

from mmrl.models import parameters, policy, rows, tower, vlm
from mmrl.models.kernels.blocks import Sparse
from mmrl.plan import flops

# XLA also counts norms, activations and softmax.
FEW_PERCENT = 0.03
G, R = 3, 24
# Patches: one frame that fits a block of keys.
GRID = (1, 12, 20)


def wide(family: str, **tower_changes):
  """Wide enough that matrix products are most of the work."""
  config = small_models.small_config(family=family, tied=False, remat=False)
  text = {"hidden_size": 256, "intermediate_size": 640, "vocab_size": 1024}
  text |= {"head_dim": 64, "mrope_section": (12, 10, 10)}
  vision = {"hidden_size": 256, "num_heads": 4, "intermediate_size": 640}
  vision |= {"out_hidden_size": 256} | tower_changes
  return dataclasses.replace(
    config,
    text=dataclasses.replace(config.text, **text),
    vision=dataclasses.replace(config.vision, **vision),
  )


@pytest.fixture(autouse=True)
def unrolled(monkeypatch):
  scan = functools.partial(jax.lax.scan, unroll=True)
  monkeypatch.setattr(jax.lax, "scan", scan)
  monkeypatch.setattr(vlm, "_UNROLLED_BYTES", 2**30)


def counted(function, *arguments) -> float:
  """XLA's count of the compiled program."""
  program = jax.jit(function).lower(*arguments).compile()
  return program.cost_analysis()["flops"]


def make(config):
  """Shapes of parameters and the prompt of one picture, without padding."""
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32),
    parameters.shapes(config),
  )
  side = config.vision.patch_size
  picture = small_models.picture(GRID[1] * side, GRID[2] * side)
  processor = small_models.make_processor(config)
  count = GRID[1] * GRID[2]
  message = small_models.user(picture, "is it?")
  length = len(processor.encode(message, "").tokens)
  prompt = processor([message], lengths=[length], patches=[count])
  return params, prompt, length


TOWERS = {
  "qwen2_vl": wide("qwen2_vl"),
  "full": wide("qwen2_5_vl", depth=1, fullatt_block_indexes=(0,)),
  "windows": wide("qwen2_5_vl", depth=1, fullatt_block_indexes=()),
  "qwen3_vl": wide("qwen3_vl"),
}


@pytest.mark.parametrize(
  "name", small_models.first("windows", "full", "qwen2_vl", "qwen3_vl")
)
def test_vision(name):
  config = TOWERS[name]
  params, prompt, _ = make(config)
  found = counted(
    lambda p, x: tower.vision(p, config, x), params, prompt.patches
  )
  expected = flops.forward(*flops.vision(config, [GRID]).values())
  assert expected == pytest.approx(found, rel=FEW_PERCENT)


def masked(config, pairs: int, products: int = 2) -> int:
  """What a program that masks scores computes for nothing, in one layer."""
  text = config.text
  return 2 * products * text.num_attention_heads * text.head_dim * pairs


@pytest.mark.parametrize(
  "family", small_models.one_family(["qwen2_5_vl", "qwen3_vl"])
)
def test_prefill_extend_rows_and_head(family):
  config = wide(family)
  params, prompt, length = make(config)
  depth = config.text.num_hidden_layers
  visual = jnp.zeros((1, GRID[1] * GRID[2] // 4, prompt_width(config)))

  def prefill(params, prompt, visual):
    return vlm.prefill(params, config, prompt, visual, attention_layers=(-1,))

  found = counted(prefill, params, prompt, visual)
  expected = flops.forward(flops.prefill(config, length))
  hidden = masked(config, length * (length - 1) // 2)
  assert expected + depth * hidden == pytest.approx(found, rel=FEW_PERCENT)

  prefix = jax.eval_shape(prefill, params, prompt, visual)
  tokens = jax.ShapeDtypeStruct((1, G, R), jnp.int32)

  def extend(params, prefix, tokens):
    inputs = vlm.embed(params, config, tokens)
    return vlm.extend(params, config, prefix, inputs, attention_layers=(-1,))

  found = counted(extend, params, prefix, tokens)
  expected = flops.forward(flops.extend(config, length, G, R))
  hidden = masked(config, G * R * (R - 1) // 2)
  assert expected + depth * hidden == pytest.approx(found, rel=FEW_PERCENT)

  output = jax.eval_shape(extend, params, prefix, tokens)
  found = counted(rows.attention_rows, output.attention)
  expected = flops.forward(flops.rows(config, length, G, R, 1))
  hidden = masked(config, G * R * (R - 1) // 2, products=1)
  # Softmax, mean over heads: 12 operations on a score of 2 * 64.
  assert expected + hidden == pytest.approx(found, rel=0.12)

  def head(params, hidden, tokens):
    logits = policy.lazy_logits(params, config, hidden)
    return policy.token_logprobs(logits, tokens)

  found = counted(head, params, output.hidden, tokens)
  expected = flops.forward(flops.head(config, G * R))
  assert expected == pytest.approx(found, rel=FEW_PERCENT)


def prompt_width(config) -> int:
  """Values of a visual token."""
  stacks = len(config.vision.deepstack_visual_indexes)
  return (1 + stacks) * config.text.hidden_size


@pytest.mark.full
def test_training_is_what_xla_counts():
  """Everything trains, or only the decoder: three times what it computes."""
  config = wide("qwen2_vl")
  params, prompt, length = make(config)
  work = flops.vision(config, [GRID]) | {
    "layers": flops.prefill(config, length)
  }
  hidden = config.text.num_hidden_layers * masked(
    config, length * (length - 1) // 2
  )

  def loss(trained, params, prompt):
    params = params | trained
    visual = tower.vision(params, config, prompt.patches)
    return vlm.prefill(params, config, prompt, visual).last_hidden.sum()

  for names, trains in (
    (("text", "vision"), flops.PARTS),
    (("text",), ("layers", "head")),
    (("vision",), flops.VISION),
  ):
    trained = {name: params[name] for name in names}
    found = counted(jax.grad(loss), trained, params, prompt)
    expected = flops.training(work, trains) + 3 * hidden
    assert expected == pytest.approx(found, rel=FEW_PERCENT), names


def test_windows_at_the_edge_are_smaller():
  """5 x 3 visual tokens in windows of 2 x 2, with 4 patches to a token.

  Sides 2, 2, 1 and 2, 1: 16 (4 + 4 + 1) (4 + 1) pairs in each of two frames.
  """
  config = wide("qwen2_5_vl", depth=2, fullatt_block_indexes=(1,))
  work = flops.vision(config, [(2, 10, 6)])
  assert config.vision.window_cells == 2
  pairs = 2 * 16 * 9 * 5 + 2 * 60**2
  assert work["blocks"].maps == 4 * config.vision.hidden_size * pairs


def test_a_step_by_hand():
  """Two prompts; what each program runs, from the functions tested above."""
  config = wide("qwen2_5_vl")
  sizes = {"answers": 4, "count": 8}
  step = functools.partial(
    flops.step, config, grids=[GRID], lengths=[70, 90], **sizes
  )
  one, two = (flops.extend(config, s, 4, 8) for s in (70, 90))
  seen = flops.forward(*flops.vision(config, [GRID]).values())
  prompts = flops.forward(*(flops.prefill(config, s) for s in (70, 90)))
  answers = flops.forward(one, two)
  logits = flops.forward(flops.head(config, 2 * 4 * 8))
  looked = flops.forward(*(flops.rows(config, s, 4, 8, 2) for s in (70, 90)))
  text = flops.PARTS[3:]
  frozen = step(rows_probed=2, rows_trained=2, trains=text)
  assert frozen["probe"] == seen + prompts + 2 * (answers + logits) + looked
  assert frozen["update"] == 3 * (prompts + answers + logits + looked)
  # The last token of an answer is drawn and not run.
  last = answers - flops.forward(
    *(flops.extend(config, s, 4, 7) for s in (70, 90))
  )
  assert frozen["rollout"] == seen + prompts + answers - last + logits
  bare = step(rows_probed=0, reference=False, epochs=2, trains=text)
  assert bare["probe"] == answers + logits
  assert bare["update"] == 2 * 3 * (prompts + answers + logits)
  # Nothing before the patch embedding needs a gradient.
  whole = step(epochs=2)["update"] - bare["update"]
  embed = flops.vision(config, [GRID])["patch_embed"].dense
  assert whole == 2 * (3 * seen - embed)


def test_pairs_train_without_their_kernels():
  """Forward and the gradient of the inputs; of a map, that of both inputs."""
  parts = {"layers": flops.Work(10, 4), "head": flops.Work(3)}
  found = flops.training(parts, ("layers",), adapter=True)
  assert found == 2 * 10 + 3 * 4 + 2 * 3
  assert flops.training(parts, ("layers",)) == found + 10


def test_sparse_attention_by_hand():
  """Of 1 + 2 + 3 + 4 + 4 + 4 keys 18 are seen; 21 keys are scored by 2."""
  config = small_models.small_config()
  sparse = Sparse(block=2, init=1, local=1, top_k=1)
  config = dataclasses.replace(config, sparse=sparse)
  assert sparse.active == 4
  text = config.text
  per_pair = 4 * text.num_hidden_layers * text.num_attention_heads
  per_pair *= text.head_dim
  assert flops.prefill(config, 6).maps == per_pair * (18 + 21 // 4)
  assert flops.extend(config, 4, 3, 2).maps == per_pair * 3 * (8 + 11 // 4)
