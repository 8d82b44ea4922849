"""Data that flows through the pipeline, and the letters of its shapes.

Dimension letters, used in every annotation of the library:

  P  prompts of a batch            V  vocabulary entries
  G  answers per prompt            D  model width
  S  padded prompt length          L  decoder layers
  R  padded answer length          H  query heads,  K  key/value heads
  B  rows of packed patches        M  padded patches of a row
  N  padded visual tokens of a row W  padded vision windows of a row
  C  values of one flattened patch  A  layers whose attention is read
  E  width of a visual token: D for the embedding and D for each decoder layer
     that DeepStack feeds

Every structure is a frozen dataclass and a pytree. All arrays of a structure
lead with P, or with B, which divides P; so a minibatch of whole rows is a
slice of each of them (`map_prompts`).

The names by which functions read a batch are in `mmrl.names`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, dataclass_transform

import jax
from jaxtyping import Array, Bool, Float, Int

PyTree = Any
# x0, y0, x1, y1 in pixels of a picture.
Box = tuple[float | int, float | int, float | int, float | int]


@dataclass_transform(frozen_default=True)
def pytree(cls):
  """Makes `cls` a frozen dataclass whose fields are all pytree children."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  # JAX maps over fields: they may hold shapes or None where arrays belong.
  cls.__no_type_check__ = True
  return jax.tree_util.register_dataclass(cls)


def static(default: Any) -> Any:
  """Returns a field that is no child: each value has programs of its own."""
  return dataclasses.field(default=default, metadata={"static": True})


@pytree
class Patches:
  """Pictures and videos of a batch, cut into patches and packed.

  Each of the B rows holds the pictures of P / B consecutive prompts, one
  after the other whatever their sizes, and padding after the last.

  Attributes:
    pixels: normalised patch values in merge order (2x2 blocks adjacent);
      zero where there is padding.
    rows_columns: row and column of each patch in its own frame.
    extent: rows and columns of that frame, in patches; 1 on padding.
    frame: first patch and one past the last of that frame; (0, 0) is padding.
    windows: for each attention window, the patches in it; -1 is padding.
      None where the tower has no windows.
    window_slot: place of each patch in the flattened `windows`.
  """

  pixels: Float[Array, "B M C"]
  rows_columns: Int[Array, "B M 2"]
  extent: Int[Array, "B M 2"]
  frame: Int[Array, "B M 2"]
  windows: Int[Array, "B W patches"] | None
  window_slot: Int[Array, "B M"] | None


@pytree
class Prompt:
  """A padded batch of prompts.

  Attributes:
    tokens: token ids; padding holds the pad id.
    mask: True on real tokens.
    positions: temporal, height and width rotary positions.
    visual_index: index of the visual token of its row of `patches` at each
      position; -1 where the position is text or padding.
    next_position: rotary position of the first token after the prompt.
    region: share of the visual token's cell that the marked region of its
      picture covers, in [0, 1]; 0 on text and where no region is marked.
    patches: the pictures.
    evidence: a distribution over the visual tokens around the middle of the
      region, see `mmrl.prompts.regions`; 0 where no region is marked. None
      where nothing reads it.
  """

  tokens: Int[Array, "P S"]
  mask: Bool[Array, "P S"]
  positions: Int[Array, "P S 3"]
  visual_index: Int[Array, "P S"]
  next_position: Int[Array, "P"]
  region: Float[Array, "P S"]
  patches: Patches
  evidence: Float[Array, "P S"] | None = None


@pytree
class Prefix:
  """Result of `prefill` for `extend`: once per prompt, never per answer.

  Attributes:
    keys: rotated keys of every layer.
    values: values of every layer.
    mask: True on real prompt tokens.
    next_position: rotary position of the first answer token.
    last_hidden: final hidden state of the last real prompt token, whose
      logits emit the first answer token.
    last_query: that token's queries in the chosen layers; None if no
      attention was asked for.
    hidden_at: outputs of chosen layers, before the final norm; None unless
      asked for.
    marks: True on punctuation; None where attention isn't sparse.
    last_chosen: the blocks that `last_query` attends to; None likewise.
  """

  keys: Float[Array, "L P S K head"]
  values: Float[Array, "L P S K head"]
  mask: Bool[Array, "P S"]
  next_position: Int[Array, "P"]
  last_hidden: Float[Array, "P D"]
  last_query: Float[Array, "P A H head"] | None = None
  hidden_at: Float[Array, "P S A D"] | None = None
  marks: Bool[Array, "P S"] | None = None
  last_chosen: Int[Array, "P A K top"] | None = None


@pytree
class Attention:
  """Attention of answer tokens, not computed yet: see `mmrl.models.rows`.

  Attributes:
    queries: rotated queries of the answer tokens in the chosen layers.
    keys: their rotated keys.
    prefix_keys: the prompt's.
    prefix_mask: True on real prompt tokens.
    last_query: queries of the last real prompt token.
    row: "" for plain rows, else which policy: "self" or "emit".
    apart: whether functions of rows are averaged over heads and layers, rather
      than rows.
    chosen, last_chosen: the blocks that the queries, and the last one of the
      prompt, attend to; None where attention isn't sparse.
    sparse: which other blocks they attend to.
  """

  queries: Float[Array, "P G R A H head"]
  keys: Float[Array, "P G R A K head"]
  prefix_keys: Float[Array, "P S A K head"]
  prefix_mask: Bool[Array, "P S"]
  last_query: Float[Array, "P A H head"]
  row: str = dataclasses.field(default="", metadata={"static": True})
  apart: bool = dataclasses.field(default=False, metadata={"static": True})
  chosen: Int[Array, "P G R A K top"] | None = None
  last_chosen: Int[Array, "P A K top"] | None = None
  sparse: Any = dataclasses.field(default=None, metadata={"static": True})


@pytree
class Output:
  """Result of a forward pass.

  Attributes:
    hidden: final (normalised) hidden states, [P, G, R, D] or [P, S, D].
    logits: float32 [..., V]; None unless asked for.
    attention: that of the answer tokens from `extend`, or sums of its rows
      where weights were given; float32 maps [L, P, H, S, S] from `apply`; None
      unless asked for.
    hidden_at: outputs of chosen layers, before the final norm; None unless
      asked for.
  """

  hidden: Float[Array, "..."]
  logits: Float[Array, "..."] | None = None
  attention: Attention | Float[Array, "..."] | None = None
  hidden_at: Float[Array, "P G R A D"] | None = None


@pytree
class Logits:
  """Logits of tokens, not computed yet: see `mmrl.models.vocabulary`.

      l = hidden head / temperature,    -inf for what is banned

  Attributes:
    hidden: the hidden state that emits each token.
    head: the output head, one for all prompts, in the type of its products.
    pattern: "vd" or "dv", how the head is laid out.
    banned: ids that can't be drawn.
    temperature: the sampling temperature.
  """

  hidden: Float[Array, "*batch D"]
  head: Float[Array, "V D"] | Float[Array, "D V"]
  pattern: str = dataclasses.field(metadata={"static": True})
  banned: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  temperature: float = dataclasses.field(metadata={"static": True})


def map_prompts(function: Callable[[Array], Any], tree: PyTree) -> PyTree:
  """Maps `function` over arrays that lead with P or B; heads are left alone."""

  def one(leaf):
    if isinstance(leaf, Logits):
      return dataclasses.replace(leaf, hidden=function(leaf.hidden))
    return function(leaf)

  return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, Logits))


@pytree
class Scores:
  """Log-probabilities, entropies and attention of given answers.

  Attributes:
    logprobs: log-probability of each answer token.
    entropies: entropy of the distribution each token was drawn from, nats.
    attention: attention policy of each answer token; None unless asked for.
    logits: those that log-probabilities and entropies come from.
    hidden: outputs of chosen layers, before the final norm, by layer.
  """

  logprobs: Float[Array, "P G R"]
  entropies: Float[Array, "P G R"]
  attention: Attention | None = None
  logits: Logits | None = None
  hidden: dict[int, Any] = dataclasses.field(default_factory=dict)


@pytree
class Batch:
  """A batch of answers: everything about it that has a name.

  Attributes:
    prompt: the prompts.
    visual: visual tokens, packed like the patches; None if they aren't
      computed yet, or no longer valid.
    tokens: answer ids; the pad id after the end.
    mask: True on the tokens of the answers that the batch holds, the closing
      end of sequence included. An answer is dropped by clearing its mask.
    fields: what else functions may name, each with leading P: see
      `mmrl.names`.
    prefix: keys and values of the prompts under the policy that sampled; None
      where there are none, or no longer.
  """

  prompt: Prompt
  visual: Float[Array, "B N E"] | None
  tokens: Int[Array, "P G R"]
  mask: Bool[Array, "P G R"]
  fields: dict[str, Any]
  prefix: Prefix | None = None

  def context(self, scores: Scores | None = None, **more) -> dict[str, Any]:
    """Returns the data that functions name, by name.

    Args:
      scores: of the current parameters, where they are known.
      **more: what doesn't belong to the batch, such as parameters.
    """
    found = {
      "prompt": self.prompt,
      "visual": self.visual,
      "tokens": self.tokens,
      "mask": self.mask,
      "length": self.mask.sum(-1),
      **self.fields,
    }
    return found | (vars(scores) if scores else {}) | more

  def with_fields(self, **fields) -> "Batch":
    """Returns the batch with further fields."""
    return dataclasses.replace(self, fields=self.fields | fields)
