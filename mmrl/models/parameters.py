"""Parameter tree: random values, shapes, names and parts of its leaves."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmrl.errors import UserError
from mmrl.models import layers
from mmrl.models.config import ModelConfig
from mmrl.types import PyTree

# Paths of parameters that loss terms add begin with this and the term's name.
TERMS = "terms"
# Kernels that no dense layer has: they take no adapter.
_NOT_DENSE = ("vision/patch_embed/kernel", "text/head/kernel")


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
  base = jax.eval_shape(lambda: init(jax.random.key(0), config))
  pairs = jax.eval_shape(lambda: init_adapter(jax.random.key(0), config))
  return merge(flat(base), pairs)


def without_adapter(config: ModelConfig) -> ModelConfig:
  """Returns the architecture of the base model alone."""
  return dataclasses.replace(config, lora=None)


def dense_layers(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Lists the dense layers: the shape of each one's kernel, by its path.

  Layers in a stack are one, whose kernel leads with their number.
  """
  found = flat(shapes(without_adapter(config)))
  return {
    path.removesuffix("/kernel"): leaf.shape
    for path, leaf in found.items()
    if path.endswith("/kernel") and path not in _NOT_DENSE
  }


def adapted_layers(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Lists the dense layers that the config's adapter is on.

  Raises:
    UserError: if there are none, or one is too small for the rank.
  """
  lora = config.lora
  if lora is None:
    return {}
  layers_ = dense_layers(config)
  found = {k: v for k, v in layers_.items() if re.fullmatch(lora.targets, k)}
  if not found:
    raise UserError(
      f"expected targets to match paths of dense layers as a whole, found"
      f" {lora.targets!r}, which matches none of {', '.join(layers_)}"
    )
  for path, shape in found.items():
    if lora.rank > min(shape[-2:]):
      raise UserError(
        f"expected a rank of at most {min(shape[-2:])}, the smaller side of"
        f" {path}, found {lora.rank}"
      )
  return found


def init_adapter(rng: Array, config: ModelConfig) -> dict[str, Array]:
  """Initialises the config's adapter: B is zero, so it changes nothing yet.

  A is uniform in [-1, 1] / sqrt(its rows), as PEFT's. All is float32: the
  updates of training are too small for bfloat16.

  Returns:
    Parameters by path; merged with those of the base model (`merge`) they are
    the model's.
  """
  found = {}
  for path, (*stack, rows, columns) in adapted_layers(config).items():
    assert config.lora is not None
    rank, scale = config.lora.rank, config.lora.scale
    # The key is of the path, whatever other layers there are.
    key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
    a = jax.random.uniform(key, (*stack, rows, rank), minval=-1.0, maxval=1.0)
    parts = (
      a * rows**-0.5,
      jnp.zeros((*stack, rank, columns)),
      jnp.full(stack, scale, jnp.float32),
    )
    for name, leaf in zip(layers.LORA, parts, strict=True):
      found[f"{path}/{name}"] = leaf
  return found


def is_of_adapter(path: str) -> bool:
  """Tells whether a parameter is part of an adapter."""
  return path.rsplit("/", 1)[-1] in layers.LORA


def is_pair(path: str) -> bool:
  """Tells whether a parameter is A or B of an adapter."""
  return path.rsplit("/", 1)[-1] in layers.LORA[:2]


def flat(params: PyTree) -> dict[str, Any]:
  """Returns the leaves of nested parameters by path; `merge` nests them."""
  return {
    path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }


def path_name(path) -> str:
  """Formats a pytree path as `a/b/c`."""
  return "/".join(str(key.key) for key in path)


def partition(
  params: PyTree, frozen: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into those that train and those that don't.

  Of a model with an adapter only the pairs (A, B) train.

  Args:
    params: nested parameters, or their shapes.
    frozen: regular expressions; a parameter whose path (`vision/blocks/...`)
      one of them matches from the start is frozen.

  Returns:
    (trainable, frozen), each a flat dict from path to leaf.

  Raises:
    UserError: if an expression matches nothing, or nothing is left.
  """
  leaves = flat(params)
  for rule in frozen:
    if not any(re.match(rule, path) for path in leaves):
      raise UserError(
        f"config.frozen: {rule!r} matches no parameter; paths begin with"
        f" {', '.join(sorted({p.split('/')[0] for p in leaves}))}"
      )
  stays = {p for p in leaves if any(re.match(rule, p) for rule in frozen)}
  if any(map(is_of_adapter, leaves)):
    stays |= {p for p in leaves if not is_pair(p)}
  if len(stays) == len(leaves):
    raise UserError("config.frozen: expected a parameter to train, found none")
  return (
    {p: x for p, x in leaves.items() if p not in stays},
    {p: x for p, x in leaves.items() if p in stays},
  )


def merge(*parts: Mapping[str, Any]) -> PyTree:
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
