"""The model as pure functions: `vision`, `prefill`, `extend`, `apply`.

Every rollout group is one prompt and G answers to it, so the prompt is
computed once (`prefill`) and the answers attend to it and to themselves
(`extend`). Sampling is `extend` with one new token and a cache of the
answer's own keys, in the same code. Running `prefill` then `extend` is the
same function, in value and gradient, as running P * G full rows.

Depth is a scan over stacked parameters. Attention rows of chosen layers are
outputs: the scan carries the queries and keys of those layers out, and the
rows are computed from them once, so no layer holds a map it doesn't need.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.models import attention, layers
from mmrl.models.config import ModelConfig
from mmrl.types import Output, Patches, Prefix, Prompt, PyTree, pytree


@pytree
class Cache:
  """Keys and values of the answers so far.

  Attributes:
    keys, values: rotated keys and values of every layer.
    length: how many answer tokens are in.
  """

  keys: Float[Array, "L P G R K head"]
  values: Float[Array, "L P G R K head"]
  length: Int[Array, ""]


def init(rng: Array, config: ModelConfig) -> PyTree:
  """Random float32 parameters: normal(0.02) matrices, unit norms, no biases.

  Args:
    rng: PRNG key.
    config: the architecture.

  Returns:
    `{"vision": {"patch_embed", "blocks", "merger"}, "text": {"embed",
    "layers", "norm", "head"}}`; blocks and layers are stacked on axis 0, and
    `head` is there only if it isn't tied.
  """
  text, tower = config.text, config.vision
  keys = iter(jax.random.split(rng, 5))

  def stacked(block, width, head_dim, depth):
    def attend(queries, keys, values):
      return queries, None

    x = jnp.zeros((1, width))
    angles = jnp.zeros((1, head_dim // 2))

    def one(key):
      return block.init(key, x, angles, attend)["params"]

    return jax.vmap(one)(jax.random.split(next(keys), depth))

  def normal(*shape):
    return jax.random.normal(next(keys), shape)

  merger = layers.PatchMerger(tower, "float32")
  unit = tower.spatial_merge_size**2
  params = {
    "vision": {
      "patch_embed": {"kernel": normal(tower.patch_values, tower.hidden_size)},
      "blocks": stacked(
        layers.VisionBlock(tower, "float32"),
        tower.hidden_size,
        tower.head_dim,
        tower.depth,
      ),
      "merger": merger.init(
        jax.random.fold_in(rng, 1), jnp.zeros((1, unit, tower.hidden_size))
      )["params"],
    },
    "text": {
      "embed": {"embedding": normal(text.vocab_size, text.hidden_size)},
      "layers": stacked(
        layers.DecoderBlock(config),
        text.hidden_size,
        text.head_dim,
        text.num_hidden_layers,
      ),
      "norm": {"scale": jnp.ones(text.hidden_size)},
    },
  }
  if not config.tie_word_embeddings:
    params["text"]["head"] = {
      "kernel": normal(text.hidden_size, text.vocab_size)
    }

  def scale(path, leaf):
    """Every matrix becomes normal(0, 0.02) as in the published models."""
    if path[-1].key in ("kernel", "embedding"):
      return 0.02 * leaf / jnp.std(leaf)
    return leaf

  return jax.tree_util.tree_map_with_path(scale, params)


def vision(
  params: PyTree, config: ModelConfig, patches: Patches
) -> Float[Array, "P N D"]:
  """Visual tokens of each prompt, in the order of its patches.

  Args:
    params: model parameters.
    config: the architecture.
    patches: pictures cut into patches.

  Returns:
    One token per merged block of patches; padding holds values that
    `Prompt.visual_index` never points at.
  """
  tower, params = config.vision, params["vision"]
  patches = jax.tree.map(jnp.asarray, patches)
  block = layers.VisionBlock(tower, config.dtype)
  angles = attention.axial_angles(patches.rows_columns, tower.head_dim)
  same_image = patches.image[:, :, None] == patches.image[:, None, :]

  def full(queries, keys, values):
    return attention.attend(queries, keys, values, same_image)

  def windowed(queries, keys, values):
    return attention.attend_windows(
      queries, keys, values, patches.windows, patches.window_slot
    )

  def body(x, layer):
    layer_params, is_full = layer

    def attend(queries, keys, values):
      return jax.lax.cond(is_full, full, windowed, queries, keys, values), None

    return block.apply({"params": layer_params}, x, angles, attend), None

  is_full = jnp.isin(
    jnp.arange(tower.depth), jnp.array(tower.fullatt_block_indexes)
  )
  x = patches.pixels.astype(config.dtype) @ params["patch_embed"][
    "kernel"
  ].astype(config.dtype)
  x, _ = jax.lax.scan(_remat(body, config), x, (params["blocks"], is_full))
  merger = layers.PatchMerger(tower, config.dtype)
  return merger.apply({"params": params["merger"]}, x)


def _remat(body, config: ModelConfig):
  # Inside a scan no common-subexpression barrier is needed.
  return jax.checkpoint(body, prevent_cse=False) if config.remat else body


def _layer_indices(
  config: ModelConfig, attention_layers: tuple[int, ...]
) -> tuple[int, ...]:
  depth = config.text.num_hidden_layers
  return tuple(range(depth)[layer] for layer in attention_layers)


def _keep(kept: PyTree, new: PyTree, index: Array, chosen: tuple[int, ...]):
  """Writes `new` into the slots of `kept` whose layer is `index`.

  Linear in both, so that the backward pass has nothing to store for it.
  """

  def write(old, value):
    hit = jnp.array(chosen, jnp.int32) == index
    hit = hit.reshape(-1, *[1] * value.ndim)
    return jnp.where(hit, value[None], old)

  return jax.tree.map(write, kept, new) if chosen else kept


def _embed(params: PyTree, config: ModelConfig, tokens: Array) -> Array:
  table = params["text"]["embed"]["embedding"]
  return jnp.take(table, tokens, axis=0).astype(config.dtype)


def _final_norm(params: PyTree, config: ModelConfig, x: Array) -> Array:
  norm = layers.RMSNorm(config.text.rms_norm_eps, config.dtype)
  return norm.apply({"params": params["text"]["norm"]}, x)


def logits(
  params: PyTree, config: ModelConfig, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
  """Float32 logits of final hidden states."""
  text = params["text"]
  head = (
    text["embed"]["embedding"].T
    if config.tie_word_embeddings
    else text["head"]["kernel"]
  )
  return jnp.matmul(
    hidden,
    head.astype(config.dtype),
    preferred_element_type=jnp.float32,
  )


def _embed_prompt(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  visual: Float[Array, "P N D"],
) -> tuple[Array, Array]:
  x = _embed(params, config, prompt.tokens)
  index = prompt.visual_index[..., None]
  at = jnp.take_along_axis(visual, jnp.maximum(index, 0), axis=1)
  x = jnp.where(index >= 0, at.astype(x.dtype), x)
  angles = attention.rotary_angles(
    prompt.positions, config.text.mrope_section, config.text.rope_theta
  )
  return x, angles


def _causal(mask: Array) -> Array:
  """[P, S] key mask to the [P, S, S] mask of a causal sequence."""
  return mask[:, None, :] & jnp.tri(mask.shape[-1], dtype=bool)


def prefill(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  visual: Float[Array, "P N D"],
  *,
  attention_layers: tuple[int, ...] = (),
) -> Prefix:
  """Runs the prompts, once each.

  Args:
    params: model parameters.
    config: the architecture.
    prompt: padded on either side.
    visual: visual tokens from `vision`.
    attention_layers: layers (negative from the end) whose attention row of
      the last real token is wanted.

  Returns:
    Keys and values of every layer and what emits the first answer token.
  """
  prompt = jax.tree.map(jnp.asarray, prompt)
  x, angles = _embed_prompt(params, config, prompt, visual)
  block = layers.DecoderBlock(config)
  mask = _causal(prompt.mask)
  length = prompt.mask.shape[-1]
  last = length - 1 - jnp.argmax(prompt.mask[:, ::-1], axis=-1)
  chosen = _layer_indices(config, attention_layers)

  def at_last(x):
    index = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)[:, 0]

  def body(carry, layer):
    x, kept = carry
    layer_params, index = layer

    def attend(queries, keys, values):
      out = attention.attend(queries, keys, values, mask)
      return out, (queries, keys, values)

    x, (queries, keys, values) = block.apply(
      {"params": layer_params}, x, angles, attend
    )
    kept = _keep(kept, at_last(queries), index, chosen)
    return (x, kept), (keys, values)

  text = config.text
  kept = jnp.zeros(
    (len(chosen), x.shape[0], text.num_attention_heads, text.head_dim), x.dtype
  )
  indices = jnp.arange(text.num_hidden_layers)
  (x, kept), (keys, values) = jax.lax.scan(
    _remat(body, config), (x, kept), (params["text"]["layers"], indices)
  )
  last_row = None
  if chosen:
    rows = [
      attention.weights(
        query[:, None], keys[layer], prompt.mask[:, None, :]
      ).mean((1, 2))[:, 0]
      for query, layer in zip(kept, chosen, strict=True)
    ]
    last_row = sum(rows) / len(rows)
  return Prefix(
    keys=keys,
    values=values,
    mask=prompt.mask,
    next_position=prompt.next_position,
    last_hidden=at_last(_final_norm(params, config, x)),
    last_row=last_row,
  )


def _answer_angles(config: ModelConfig, prefix: Prefix, start, count: int):
  """Text positions count on from the prompt's, equal on all three axes."""
  positions = prefix.next_position[:, None, None] + start + jnp.arange(count)
  return attention.rotary_angles(
    jnp.broadcast_to(positions[..., None], (*positions.shape, 3)),
    config.text.mrope_section,
    config.text.rope_theta,
  )


def extend(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  tokens: Int[Array, "P G R"],
  *,
  attention_layers: tuple[int, ...] = (),
) -> Output:
  """Runs G answers per prompt, attending to the prefix and to themselves.

  Answers are padded on the right, where causality hides the padding.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill` under the parameters that are to attend.
    tokens: answer ids.
    attention_layers: layers (negative from the end) whose rows are wanted.

  Returns:
    `hidden` [P, G, R, D], which emits the token *after* each answer token
    (the prefix emits the first), and `attention` [P, G, R, S+R]: the row of
    each answer token over prompt and answer, its own position included, mean
    over heads and the chosen layers.
  """
  x = _embed(params, config, tokens)
  count = tokens.shape[-1]
  angles = _answer_angles(config, prefix, 0, count)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  mask = jnp.tri(count, dtype=bool)
  chosen = _layer_indices(config, attention_layers)

  def body(carry, layer):
    x, kept = carry
    layer_params, prefix_keys, prefix_values, index = layer

    def attend(queries, keys, values):
      out = attention.attend_prefix(
        queries, prefix_keys, prefix_values, prefix.mask, keys, values, mask
      )
      return out, (queries, keys)

    x, new = block.apply({"params": layer_params}, x, angles, attend)
    return (x, _keep(kept, new, index, chosen)), None

  text = config.text
  kept = tuple(
    jnp.zeros((len(chosen), *tokens.shape, heads, text.head_dim), x.dtype)
    for heads in (text.num_attention_heads, text.num_key_value_heads)
  )
  indices = jnp.arange(text.num_hidden_layers)
  (x, (queries, keys)), _ = jax.lax.scan(
    _remat(body, config),
    (x, kept),
    (params["text"]["layers"], prefix.keys, prefix.values, indices),
  )
  rows = [
    attention.attention_rows(
      queries[slot], prefix.keys[layer], prefix.mask, keys[slot], mask
    )
    for slot, layer in enumerate(chosen)
  ]
  return Output(
    hidden=_final_norm(params, config, x),
    attention=sum(rows) / len(rows) if rows else None,
  )


def empty_cache(
  config: ModelConfig, prefix: Prefix, answers: int, length: int
) -> Cache:
  """A cache for `answers` answers of at most `length` tokens per prompt."""
  layers_, prompts, _, heads, size = prefix.keys.shape
  shape = (layers_, prompts, answers, length, heads, size)
  zeros = jnp.zeros(shape, prefix.keys.dtype)
  return Cache(keys=zeros, values=zeros, length=jnp.zeros((), jnp.int32))


def decode(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  cache: Cache,
  token: Int[Array, "P G"],
) -> tuple[Float[Array, "P G D"], Cache]:
  """`extend` by one token, with the earlier tokens' keys in `cache`.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill`.
    cache: earlier tokens of the same answers.
    token: the next token of every answer.

  Returns:
    The final hidden state that emits the token after it, and the new cache.
  """
  x = _embed(params, config, token[..., None])
  angles = _answer_angles(config, prefix, cache.length, 1)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  mask = (jnp.arange(cache.keys.shape[3]) <= cache.length)[None]

  def body(carry, layer):
    x, all_keys, all_values = carry
    layer_params, prefix_keys, prefix_values, index = layer

    def attend(queries, keys, values):
      # Written in place in the carry: stacking scanned-out caches would copy
      # all of them at every token.
      where = (index, 0, 0, cache.length, 0, 0)
      update = jax.lax.dynamic_update_slice
      new_keys = update(all_keys, keys[None], where)
      new_values = update(all_values, values[None], where)
      out = attention.attend_prefix(
        queries,
        prefix_keys,
        prefix_values,
        prefix.mask,
        jax.lax.dynamic_index_in_dim(new_keys, index, keepdims=False),
        jax.lax.dynamic_index_in_dim(new_values, index, keepdims=False),
        mask,
      )
      return out, (new_keys, new_values)

    x, (all_keys, all_values) = block.apply(
      {"params": layer_params}, x, angles, attend
    )
    return (x, all_keys, all_values), None

  indices = jnp.arange(config.text.num_hidden_layers)
  (x, keys, values), _ = jax.lax.scan(
    body,
    (x, cache.keys, cache.values),
    (params["text"]["layers"], prefix.keys, prefix.values, indices),
  )
  hidden = _final_norm(params, config, x)[:, :, 0]
  return hidden, Cache(keys=keys, values=values, length=cache.length + 1)


def apply(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  *,
  attention: str = "none",
) -> Output:
  """A whole sequence in one call, for parity tests and notebooks.

  Args:
    params: model parameters.
    config: the architecture.
    prompt: sequences, answers included if there are any.
    attention: "none", or "all" for every map of every layer.

  Returns:
    `hidden`, `logits` [P, S, V] and, with "all", `attention`
    [L, P, H, S, S].

  Raises:
    ValueError: if `attention` is neither.
  """
  if attention not in ("none", "all"):
    raise ValueError(f"attention must be 'none' or 'all', got {attention!r}")
  prompt = jax.tree.map(jnp.asarray, prompt)
  visual = vision(params, config, prompt.patches)
  return _apply(params, config, prompt, visual, attention == "all")


def _apply(params, config, prompt, visual, maps: bool) -> Output:
  x, angles = _embed_prompt(params, config, prompt, visual)
  block = layers.DecoderBlock(config)
  mask = _causal(prompt.mask)

  def body(x, layer_params):
    def attend(queries, keys, values):
      out = attention.attend(queries, keys, values, mask)
      all_maps = attention.weights(queries, keys, mask) if maps else None
      return out, all_maps

    return block.apply({"params": layer_params}, x, angles, attend)

  x, kept = jax.lax.scan(_remat(body, config), x, params["text"]["layers"])
  if maps:
    kept = kept.reshape(*kept.shape[:2], -1, *kept.shape[4:])
  hidden = _final_norm(params, config, x)
  return Output(
    hidden=hidden, logits=logits(params, config, hidden), attention=kept
  )
