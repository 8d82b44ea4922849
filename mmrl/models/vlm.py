"""Decoder as pure functions: `prefill`, `extend`, `apply`.

Every rollout group is one prompt and G answers to it, so the prompt is
computed once (`prefill`) and the answers attend to it and to themselves
(`extend`). Running `prefill` then `extend` is the same function, in value and
gradient, as running P * G full rows.

The layers are a scan over stacked parameters, unrolled where they are few. It
returns the queries and keys of chosen layers: attention rows are computed from
them where they are read (`mmrl.models.rows`), and no layer stores a map.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.machines import groups, sharding
from mmrl.models import layers, rows, tower
from mmrl.models.config import ModelConfig
from mmrl.models.kernels import attention, sparse
from mmrl.models.passes import shared
from mmrl.types import Attention, Output, Prefix, Prompt, PyTree

# Decoders of at most this many bytes are compiled layer after layer, larger
# ones as a scan. Unrolled, no weights, residuals and caches are cut out of
# stacks and written back: twice as fast on a CPU; 256 MiB.
_UNROLLED_BYTES = 2**28


def unrolled(params: PyTree) -> bool:
  """Tells whether the decoder's layers are unrolled instead of scanned."""
  layers_ = jax.tree.leaves(params["text"]["layers"])
  return sum(x.nbytes for x in layers_) <= _UNROLLED_BYTES


def scan_layers(body, params: PyTree, config: ModelConfig, carry, xs=()):
  """Scans `body(carry, (layer's parameters, its index, *xs))` over layers."""
  depth, unroll = config.text.num_hidden_layers, unrolled(params)
  if config.remat:
    # Inside a loop no common-subexpression barrier is needed.
    body = jax.checkpoint(body, prevent_cse=unroll)
  xs = (params["text"]["layers"], jnp.arange(depth), *xs)
  return jax.lax.scan(body, carry, xs, unroll=depth if unroll else 1)


def keep(kept: PyTree, new: PyTree, index: Array, chosen: tuple[int, ...]):
  """Writes `new` into the slots of `kept` whose layer is `index`.

  Linear in both, so that the backward pass has nothing to store for it.
  """

  def write(old, value):
    hit = jnp.array(chosen, jnp.int32) == index
    hit = hit.reshape(-1, *[1] * value.ndim)
    return jnp.where(hit, value[None], old)

  return jax.tree.map(write, kept, new) if chosen else kept


def embed(
  params: PyTree, config: ModelConfig, tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch D"]:
  """Looks up the embeddings of token ids, in the compute type."""
  # Replicated: sharded rows would have to be gathered for every token.
  table = sharding.whole(params["text"]["embed"]["embedding"])
  over = groups.over_answers if tokens.ndim > 2 else sharding.over_prompts
  return over(jnp.take(table, tokens, axis=0)).astype(config.dtype)


def final_norm(params: PyTree, config: ModelConfig, x: Array) -> Array:
  norm = layers.RMSNorm(config.text.rms_norm_eps, config.dtype)
  return layers.run(norm, params["text"]["norm"], x)


def head(params: PyTree, config: ModelConfig) -> tuple[Array, str]:
  """Returns the output head in the compute type, and its layout: vd or dv."""
  text = params["text"]
  if config.tie_word_embeddings:
    return text["embed"]["embedding"].astype(config.dtype), "vd"
  return text["head"]["kernel"].astype(config.dtype), "dv"


def logits(
  params: PyTree, config: ModelConfig, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
  """Computes float32 logits of final hidden states."""
  kernel, pattern = head(params, config)
  return jnp.einsum(
    f"...d,{pattern}->...v",
    hidden,
    kernel,
    preferred_element_type=jnp.float32,
  )


def _embed_prompt(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  visual: Float[Array, "B N E"],
) -> tuple[Array, Array, Array]:
  """Embeds prompts and their visual tokens.

  Returns:
    Hidden states, what DeepStack adds to the output of each of the first
    layers ([layers, P, S, D]), and rotary angles.
  """
  x = embed(params, config, prompt.tokens)
  index = prompt.visual_index
  flat = jnp.maximum(index, 0).reshape(visual.shape[0], -1, 1)
  at = jnp.take_along_axis(visual, flat, axis=1)
  at = at.reshape(*index.shape, -1, x.shape[-1]).astype(x.dtype)
  is_visual = (index >= 0)[..., None]
  x = jnp.where(is_visual, at[..., 0, :], x)
  deep = jnp.where(is_visual, jnp.moveaxis(at[..., 1:, :], -2, 0), 0)
  text = config.text
  angles = attention.rotary_angles(
    prompt.positions, text.rotary_axes, text.rope_theta
  )
  return x, deep, angles


def add_deep(
  x: Float[Array, "P S D"],
  deep: Float[Array, "layers P S D"],
  index: Int[Array, ""],
) -> Float[Array, "P S D"]:
  """Adds DeepStack's part to the output of layer `index`, if it has one."""
  count = deep.shape[0]
  if not count:
    return x
  own = jnp.minimum(index, count - 1)
  own = jax.lax.dynamic_index_in_dim(deep, own, keepdims=False)
  return x + jnp.where(index < count, own, 0)


def prefill(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  visual: Float[Array, "B N E"],
  *,
  attention_layers: tuple[int, ...] = (),
  hidden_layers: tuple[int, ...] = (),
) -> Prefix:
  """Runs the decoder over the prompts, once each.

  Args:
    params, config: of the model.
    prompt: padded on either side.
    visual: visual tokens from `tower.vision`.
    attention_layers: layers (negative from the end) whose query of the last
      real token is wanted.
    hidden_layers: layers (negative from the end) whose output is wanted.

  Returns:
    Keys and values of every layer, and the hidden state that emits the first
    answer token.
  """
  prompt = jax.tree.map(jnp.asarray, prompt)
  x, deep, angles = _embed_prompt(params, config, prompt, visual)
  block = layers.DecoderBlock(config)
  length = prompt.mask.shape[-1]
  last = length - 1 - jnp.argmax(prompt.mask[:, ::-1], axis=-1)
  chosen = config.text.indices(attention_layers)
  seen = config.text.indices(hidden_layers)
  marks = sparse.marks(config.sparse, prompt.tokens, prompt.mask)
  mixed = tower.mixed_mask(config, prompt) if config.mixed_attention else None

  def at_last(x):
    index = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)[:, 0]

  def body(carry, layer):
    x, kept, states = carry
    x = sharding.over_prompts(x)
    layer_params, index = layer

    def attend(queries, keys, values):
      if mixed is not None:
        out = attention.attend(queries, keys, values, mixed)
        return out, ((queries, None), keys, values)
      out, found = sparse.attend_causal(
        queries, keys, values, prompt.mask, marks, config.sparse
      )
      return out, ((queries, found), keys, values)

    x, (row, keys, values) = layers.run(block, layer_params, x, angles, attend)
    # The last real token's row is the one that emits the first answer token.
    kept = keep(kept, jax.tree.map(at_last, row), index, chosen)
    x = add_deep(x, deep, index)
    return (x, kept, keep(states, x, index, seen)), (keys, values)

  text = config.text
  sizes, kv_heads = (len(chosen), x.shape[0]), text.num_key_value_heads
  kept = (
    jnp.zeros((*sizes, text.num_attention_heads, text.head_dim), x.dtype),
    sparse.nothing(config.sparse, *sizes, kv_heads),
  )
  states = jnp.zeros((len(seen), *x.shape), x.dtype)
  (x, kept, states), (keys, values) = scan_layers(
    body, params, config, (x, kept, states)
  )
  return Prefix(
    keys=keys,
    values=values,
    mask=prompt.mask,
    next_position=prompt.next_position,
    last_hidden=at_last(final_norm(params, config, x)),
    last_query=jnp.moveaxis(kept[0], 0, 1) if chosen else None,
    hidden_at=jnp.moveaxis(states, 0, 2) if seen else None,
    marks=marks,
    last_chosen=_lead(kept[1], 1) if chosen else None,
  )


def _lead(x: Array | None, axis: int) -> Array | None:
  """Moves the layers, which lead, to another axis, if there is anything."""
  return None if x is None else jnp.moveaxis(x, 0, axis)


def answer_angles(config: ModelConfig, prefix: Prefix, start, count: int):
  """Computes rotary angles of `count` answer tokens from `start` on.

  Text positions continue the prompt's, equal on all three axes.
  """
  after = start + jnp.arange(count)[None, None]
  positions = prefix.next_position[:, None, None] + after
  return attention.rotary_angles(
    jnp.broadcast_to(positions[..., None], (*positions.shape, 3)),
    config.text.rotary_axes,
    config.text.rope_theta,
  )


@shared.out
def extend(
  params: PyTree,
  config: ModelConfig,
  prefix: Prefix,
  inputs: Float[Array, "P G R D"],
  *,
  attention_layers: tuple[int, ...] = (),
  hidden_layers: tuple[int, ...] = (),
  weights: Float[Array, "P S n"] | None = None,
  tokens: Int[Array, "P G R"] | None = None,
) -> Output:
  """Runs G answers per prompt, which attend to the prefix and to themselves.

  Answers are padded on the right, where causality hides the padding.

  Args:
    params: model parameters.
    config: the architecture.
    prefix: from `prefill` under the parameters that are to attend.
    inputs: embeddings of the answers: `embed` of their tokens, or others.
    attention_layers: layers (negative from the end) whose rows are wanted;
      `prefix` has the same.
    hidden_layers: layers (negative from the end) whose output is wanted.
    weights: of the prompt's positions. With these, rows of `attention_layers`
      are summed as each layer is run, and their queries and keys aren't kept.
    tokens: ids of the answers, which sparse attention reads for punctuation.

  Returns:
    `hidden` [P, G, R, D], which emits the token *after* each answer token
    (the prefix emits the first), and `attention`, of which
    `attention_rows` makes the row of each answer token over prompt and
    answer, its own position included, [P, G, R, S+R]; `hidden_at` [P, G, R,
    chosen layers, D], before the final norm. With `weights`, `attention` is
    [P, G, R, chosen layers, n + 1] instead: see `rows.weighed`.
  """
  x = sharding.over_prompts(inputs.astype(config.dtype))
  count = inputs.shape[-2]
  angles = answer_angles(config, prefix, 0, count)
  angles = jnp.broadcast_to(angles, (*x.shape[:-1], angles.shape[-1]))
  block = layers.DecoderBlock(config)
  chosen = config.text.indices(attention_layers)
  seen = config.text.indices(hidden_layers)
  marks = prefix.marks, sparse.marks(config.sparse, tokens)

  def body(carry, layer):
    x, kept, states = carry
    x = sharding.over_prompts(x)
    layer_params, index, prefix_keys, prefix_values = layer

    def attend(queries, keys, values):
      before = prefix_keys, prefix_values, prefix.mask
      out, found = sparse.attend_answers(
        queries, *before, keys, values, marks, config.sparse
      )
      # Not maps: rows are computed from these, a few at a time.
      if weights is None:
        return out, (queries, keys, found)
      sums = jax.lax.cond(
        (jnp.array(chosen, jnp.int32) == index).any(),
        functools.partial(rows.weighed_layer, sparse=config.sparse),
        lambda *_: jnp.zeros(kept[0].shape[1:], jnp.float32),
        *(queries, keys, prefix_keys, prefix.mask, weights, found),
      )
      return out, (sums,)

    x, new = layers.run(block, layer_params, x, angles, attend)
    kept = keep(kept, new, index, chosen)
    return (x, kept, keep(states, x, index, seen)), None

  text = config.text
  sizes = len(chosen), *x.shape[:-1]
  kept: tuple = tuple(
    jnp.zeros((*sizes, heads, text.head_dim), x.dtype)
    for heads in (text.num_attention_heads, text.num_key_value_heads)
  )
  kept = *kept, sparse.nothing(config.sparse, *sizes, text.num_key_value_heads)
  if weights is not None:
    shape = (len(chosen), *x.shape[:-1], weights.shape[-1] + 1)
    kept = (jnp.zeros(shape, jnp.float32),)
  prefixes = prefix.keys, prefix.values
  states = jnp.zeros((len(seen), *x.shape), x.dtype)
  (x, kept, states), _ = scan_layers(
    body, params, config, (x, kept, states), prefixes
  )
  found: Attention | Array | None = None
  if weights is not None:
    found = jnp.moveaxis(kept[0], 0, 3)
  if chosen and weights is None:
    queries, keys, blocks = kept
    assert prefix.last_query is not None, "prefill had no attention_layers"
    found = Attention(
      queries=jnp.moveaxis(queries, 0, 3),
      keys=jnp.moveaxis(keys, 0, 3),
      prefix_keys=jnp.stack([prefix.keys[i] for i in chosen], axis=2),
      prefix_mask=prefix.mask,
      last_query=prefix.last_query,
      chosen=_lead(blocks, 3),
      last_chosen=prefix.last_chosen,
      sparse=config.sparse,
    )
  return Output(
    hidden=final_norm(params, config, x),
    attention=found,
    hidden_at=jnp.moveaxis(states, 0, 3) if seen else None,
  )


def apply(
  params: PyTree,
  config: ModelConfig,
  prompt: Prompt,
  *,
  attention: str = "none",
) -> Output:
  """Runs whole sequences in one call, for parity tests and notebooks.

  Args:
    params, config: of the model.
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
  visual = tower.vision(params, config, prompt.patches)
  return _apply(params, config, prompt, visual, attention == "all")


def _apply(params, config, prompt, visual, maps: bool) -> Output:
  x, deep, angles = _embed_prompt(params, config, prompt, visual)
  block = layers.DecoderBlock(config)
  masks = prompt.mask, sparse.marks(config.sparse, prompt.tokens, prompt.mask)
  mixed = tower.mixed_mask(config, prompt) if config.mixed_attention else None

  def body(x, layer):
    layer_params, index = layer

    def attend(queries, keys, values):
      mask = sparse.mask_causal(queries, keys, *masks, config.sparse)
      mask = mask if mixed is None else mixed[:, None, None]
      out = attention.attend_by_head(queries, keys, values, mask)
      if not maps:
        return out, None
      return out, attention.weights_by_head(queries, keys, mask)

    x, kept = layers.run(block, layer_params, x, angles, attend)
    return add_deep(x, deep, index), kept

  x, kept = scan_layers(body, params, config, x)
  if maps:
    kept = kept.reshape(*kept.shape[:2], -1, *kept.shape[4:])
  hidden = final_norm(params, config, x)
  return Output(
    hidden=hidden, logits=logits(params, config, hidden), attention=kept
  )
