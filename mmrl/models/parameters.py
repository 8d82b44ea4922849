"""Parameter tree: random values, shapes, names and parts of its leaves."""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmrl.errors import UserError
from mmrl.models import layers
from mmrl.models.config import ModelConfig
from mmrl.types import PyTree

# Paths of parameters that loss terms add begin with this and the term's name.
TERMS = "terms"


def init(rng: Array, config: ModelConfig) -> PyTree:
  """Initialises parameters: normal(0.02) matrices, unit norms, zero biases.

  Args:
    rng: PRNG key.
    config: the architecture.

  Returns:
    `{"vision": {"patch_embed", "blocks", "merger"}, "text": {"embed",
    "layers", "norm"}}`, float32; blocks and layers are stacked on axis 0.
    Where the architecture has them, `vision` holds "positions" and "deepstack"
    (mergers stacked on axis 0), too, and `text` holds an untied "head".
  """
  text, tower = config.text, config.vision
  keys = iter(jax.random.split(rng, 9))

  def normal(*shape):
    return 0.02 * jax.random.normal(next(keys), shape)

  def stacked(module, depth, *inputs):
    """Initialises `depth` modules' parameters, given example inputs."""

    def one(key):
      return module.init(key, *inputs)["params"]

    return jax.vmap(one)(jax.random.split(next(keys), depth))

  def blocks(module, depth, width, head_dim):
    # Parameters don't depend on the kind of attention: any function will do.
    inputs = jnp.zeros((1, width)), jnp.zeros((1, head_dim // 2))
    return stacked(module, depth, *inputs, lambda q, k, v: (q, None))

  merged = jnp.zeros((1, tower.spatial_merge_size**2, tower.hidden_size))
  merger = layers.PatchMerger(tower, "float32")
  vision = {
    "patch_embed": {"kernel": normal(tower.patch_values, tower.hidden_size)},
    "blocks": blocks(
      layers.VisionBlock(tower, "float32"),
      tower.depth,
      tower.hidden_size,
      tower.head_dim,
    ),
    "merger": merger.init(next(keys), merged)["params"],
  }
  if tower.patch_bias:
    vision["patch_embed"]["bias"] = jnp.zeros(tower.hidden_size)
  if tower.position_grid:
    shape = tower.position_grid**2, tower.hidden_size
    vision["positions"] = {"embedding": normal(*shape)}
  if tower.deepstack_visual_indexes:
    deep = layers.PatchMerger(tower, "float32", norm_merged=True)
    count = len(tower.deepstack_visual_indexes)
    vision["deepstack"] = stacked(deep, count, merged)
  decoder = {
    "embed": {"embedding": normal(text.vocab_size, text.hidden_size)},
    "layers": blocks(
      layers.DecoderBlock(config),
      text.num_hidden_layers,
      text.hidden_size,
      text.head_dim,
    ),
    "norm": {"scale": jnp.ones(text.hidden_size)},
  }
  if not config.tie_word_embeddings:
    shape = text.hidden_size, text.vocab_size
    decoder["head"] = {"kernel": normal(*shape)}
  return {"vision": vision, "text": decoder}


def shapes(config: ModelConfig) -> PyTree:
  """Returns shapes of the parameters, without allocating any."""
  return jax.tree.map(lambda x: x, _shapes(config))


@functools.lru_cache
def _shapes(config: ModelConfig) -> PyTree:
  # Traced once: a run asks for them several times before its first step.
  return jax.eval_shape(lambda: init(jax.random.key(0), config))


def path_name(path) -> str:
  """Formats a pytree path as `a/b/c`."""
  return "/".join(str(key.key) for key in path)


def partition(
  params: PyTree, frozen: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into those that train and those that don't.

  Args:
    params: nested parameters, or their shapes.
    frozen: regular expressions; a parameter whose path (`vision/blocks/...`)
      one of them matches from the start is frozen.

  Returns:
    (trainable, frozen), each a flat dict from path to leaf.

  Raises:
    UserError: if an expression matches nothing, or nothing is left.
  """
  flat = {
    path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  for rule in frozen:
    if not any(re.match(rule, path) for path in flat):
      raise UserError(
        f"config.frozen: {rule!r} matches no parameter; paths begin with"
        f" {', '.join(sorted({p.split('/')[0] for p in flat}))}"
      )
  stays = {p for p in flat if any(re.match(rule, p) for rule in frozen)}
  if len(stays) == len(flat):
    raise UserError("config.frozen: expected a parameter to train, found none")
  return (
    {p: x for p, x in flat.items() if p not in stays},
    {p: x for p, x in flat.items() if p in stays},
  )


def merge(*parts: Mapping[str, jax.Array]) -> PyTree:
  """Nests parameters from flat dicts; undoes `partition`."""
  params: dict = {}
  for part in parts:
    for path, leaf in part.items():
      *parents, name = path.split("/")
      node = params
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = leaf
  return params


def is_of_term(path: str) -> bool:
  """Tells whether a parameter was added by a loss term."""
  return path.split("/")[0] == TERMS
