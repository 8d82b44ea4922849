"""The contract of every method and every experiment: one table, one row each.

Each row builds, has a finite value and gradient, never looks at padding,
compiles once, accepts bfloat16 and gives the same numbers on eight devices.
A new method or experiment without a row fails here, and so does a row
without its method.

Experiments run on a policy that is a table, so that what is tested is the
method and not the model: their probes, advantages, token weights, losses and
optimiser are the ones that `build_run` has built.
"""

import ast
import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from texts import random_texts

from mmrl import (
  advantages,
  build,
  losses,
  models,
  names,
  probes,
  rewards,
  token_weights,
)
from mmrl import config as config_lib
from mmrl.data import Example
from mmrl.losses import reduce, weight
from mmrl.losses.state import Measured, Stateful
from mmrl.machines import sharding
from mmrl.models import rows
from mmrl.models.config import Latent
from mmrl.names import SCORES
from mmrl.plan.programs import read_architecture
from mmrl.probes.scores import Scorer
from mmrl.rollouts import answers as answers_lib
from mmrl.train import models as models_lib
from mmrl.train import objective, walk
from mmrl.train import parts as parts_lib
from mmrl.train import run as run_lib
from mmrl.train import state as state_lib
from mmrl.train.state import State
from mmrl.types import Attention, Batch, Logits, Prefix, Prompt, Scores

# Package, name, options that a spec may set.
METHODS = [
  (advantages, "difficulty_aware", {"bins": 3}),
  (advantages, "expert_group_normalised", {"scale": "none"}),
  (advantages, "group_normalised", {"scale": "batch", "epsilon": 1e-4}),
  (advantages, "leave_one_out", {"beta": 0.03}),
  (advantages, "reinforce_plus_plus", {"beta": 0.01, "baseline": True}),
  (losses, "attention_distillation", {}),
  (losses, "attention_jsd", {}),
  (losses, "clipped_ratio", {"clip_high": 0.28, "dual_clip": 3.0}),
  (losses, "clipped_sequence_ratio", {"level": "token", "clip_low": 0.1}),
  (losses, "clipped_weight", {"weight_max": 1.5}),
  (losses, "evidence_kl", {"gate": 0.1, "sampled_tokens": 2}),
  (losses, "distillation_kl", {"beta": 0.5, "temperature": 2.0}),
  (losses, "dpo", {"kind": "ipo", "beta": 0.2}),
  (losses, "expert_shaped", {"shape": 0.2}),
  (losses, "joint_preference", {"beta": 0.2}),
  (losses, "latent_alignment", {"encoders": ({"name": "own_tower"},)}),
  (losses, "likelihood", {}),
  (losses, "mixed_preference", {"vision_weight": 1.0}),
  (losses, "on_policy_ratio", {}),
  (losses, "policy_gradient", {}),
  (losses, "reference_kl", {"estimator": "k3", "clamp": 11.0}),
  (losses, "simpo", {"margin": 1.0}),
  (losses, "visual_reconstruction", {"steps": 10}),
  (probes, "attention_average", {}),
  (probes, "attention_reference", {}),
  (probes, "attention_shares", {}),
  (probes, "average", {}),
  (probes, "behaviour", {}),
  (probes, "image_blind", {}),
  (probes, "looks", {}),
  (probes, "nucleus", {"top_p": 0.9}),
  (probes, "reference", {}),
  (probes, "teacher", {}),
  (probes, "visual_cosines", {}),
  (probes, "visual_entropy", {}),
  (probes, "visual_sinks", {"deviations": 0.5}),
  (rewards, "accuracy", {"kinds": {"all": "choice"}}),
  (rewards, "answer_format", {"form": "answer"}),
  (rewards, "attention_share", {"of": "answer"}),
  (rewards, "back_format", {}),
  (rewards, "back_segment", {}),
  (rewards, "boxed_accuracy", {}),
  (rewards, "box_iou", {"threshold": 0.5}),
  (rewards, "chain_part", {"part": "logic"}),
  (rewards, "chain_steps", {"tau": 1.0}),
  (rewards, "chain_structure", {}),
  (rewards, "choice", {}),
  (rewards, "closeness", {}),
  (rewards, "consistency_bonus", {"margin": 0.01}),
  (rewards, "exact_answer", {}),
  (rewards, "first_math_answer", {}),
  (rewards, "frame_format", {}),
  (rewards, "inferred_choice", {}),
  (rewards, "judged_facts", {}),
  (rewards, "judged_share", {}),
  (rewards, "label_attribution", {"hit": 1.0}),
  (rewards, "lined_format", {}),
  (rewards, "first_option", {"strict": False}),
  (rewards, "length_window", {"low": 10, "high": 20}),
  (rewards, "lenient_answer", {}),
  (rewards, "math_answer", {}),
  (rewards, "meteor", {"synonyms": False}),
  (rewards, "number", {"tolerance": 0.01}),
  (rewards, "pair_preference", {}),
  (rewards, "refocus_gain", {}),
  (rewards, "repeated_ngrams", {"n": (2, 3)}),
  (rewards, "region_attention", {"fraction": 0.5}),
  (rewards, "rouge", {}),
  (rewards, "sink_suppression", {"allowed": 0.5}),
  (rewards, "stated_facts", {}),
  (rewards, "soft_overlong", {"longest": 4, "buffer": 3}),
  (rewards, "target_attention", {}),
  (rewards, "visual_cosine", {"layer": 0}),
  (rewards, "visual_evenness", {"window": 2, "stride": 1}),
  (rewards, "word_error_rate", {}),
  (token_weights, "entropy_quantile", {"quantile": 0.5}),
  (token_weights, "expert_low_probability", {"alpha": 0.3}),
  (token_weights, "expert_visual", {"strength": 2.0}),
  (token_weights, "future_kl", {"half_life": 2.0}),
  (token_weights, "low_probability", {"sign": "positive"}),
  (token_weights, "own_tokens", {}),
  (token_weights, "perception_reasoning", {"perception_weight": 0.7}),
  (token_weights, "sampler_mismatch", {"level": "sequence", "normalize": True}),
  (token_weights, "span_weights", {"reasoning": (1.0, 0.5, 0.0)}),
]
# File in experiments/, arm. Arms for large models are those of `runlocal` with
# other sizes: see `test_every_large_arm_binds`.
EXPERIMENTS = [
  ("adavip", "data"),
  ("causal_halbench", "counterfactual"),
  ("cispo", "runlocal"),
  ("dapo", "runlocal"),
  ("dpo", "data"),
  ("dpo", "runlocal"),
  ("dr_grpo", "runlocal"),
  ("durian", "runlocal"),
  ("ease", "runlocal"),
  ("egoreasoner", "runlocal"),
  ("fipo", "runlocal"),
  ("gspo", "runlocal"),
  ("jsonl", "data"),
  ("jsonl", "data,instruct"),
  ("quickstart", "grpo"),
  ("lora", "runlocal"),
  ("laser", "runlocal"),
  ("look_back", "runlocal"),
  ("look_back", "runlocal,control"),
  ("low_probability", "runlocal"),
  ("opad", "runlocal"),
  ("opad", "runlocal,kd"),
  ("perception_r1", "runlocal"),
  ("phsa", "runlocal"),
  ("quickstart", "ral"),
  ("ral_qwen2_5_vl_3b", "data"),
  ("ral_qwen2_5_vl_7b", "data"),
  ("ral_zero", "runlocal"),
  ("react", "runlocal"),
  ("reinforce_plus_plus", "runlocal"),
  ("rloo", "runlocal"),
  ("sayo", "runlocal"),
  ("seed_bench_r1", "runlocal"),
  ("seed_bench_r1", "runlocal,care"),
  ("sft", "data"),
  ("tgrl", "EXPERTS,runlocal"),
  ("tor", "runlocal"),
  ("tor", "runlocal,dapo"),
]
LARGE = [
  *((name, "data") for name, arm in EXPERIMENTS if arm == "runlocal"),
  ("geometry3k", "data"),
  ("geometry3k", "hub:hiyouga/geometry3k"),
  ("grounding", "data"),
  ("grounding", "data,thousandths"),
  ("opad", "data,kd"),
  ("tgrl", "EXPERTS,data"),
  ("tor", "data,dapo"),
  ("video_r1", "data"),
  # Arms of those above, with other terms or other data.
  ("attention_study", "ral-average@10"),
  ("attention_study", "ral-reference@10"),
  ("attention_study", "ral-visual@10"),
  ("attention_study", "ease-rolled@10"),
  ("attention_study", "laser-random"),
  ("attention_study", "opad@10"),
  ("attention_study", "sayo-rolled"),
  ("adavip", "data,mixed"),
  ("adavip", "data,language"),
  ("dpo", "runlocal,simpo"),
  ("egoreasoner", "data,gated"),
  ("egoreasoner", "data,sft"),
  ("look_back", "runlocal,cold"),
  ("look_back", "runlocal,solution"),
  ("perception_r1", "data,accuracy"),
  ("perception_r1", "data,guarded"),
  ("react", "data,all_pairs"),
  ("react", "data,labels"),
  ("react", "data,cold"),
  ("sayo", "runlocal,accuracy"),
  ("sayo", "runlocal,format"),
  ("seed_bench_r1", "data,care"),
  ("seed_bench_r1", "data,sft"),
  ("sft", "data,masked"),
]

# Right answers of rewards that take only some; and what computes them, where
# that is an extra.
RIGHT = {
  "box_iou": ["[0, 0, 1, 1]", "[1, 1, 9, 9]"],
  "closeness": ["1", "2"],
  "number": ["1", "2"],
  "rouge": ["a red circle", "blue"],
}
# What a text is, that gets 1, if not a right answer in its block.
TEXTS = {
  "back_format": (
    r"<think>a</think> <back>b</back> <think>c</think> \boxed{4}"
  ),
  "back_segment": "<back></back>",
  "boxed_accuracy": r"\boxed{B}",
  **dict.fromkeys(
    ("chain_part", "chain_steps", "chain_structure"),
    "<think>\nCount: 0\n</think><answer>B</answer>",
  ),
}
# Rewards whose best value isn't 1, and those that white space matters to.
BEST = {"pair_preference": np.log(1 / 6), "repeated_ngrams": 0.0}
STRICT = {"lined_format"}
_FRAME = '<think></think><answer>{"labels": ["a"], "score": 3}</answer>'
TEXTS |= {
  **dict.fromkeys(("frame_format", "label_attribution"), _FRAME),
  **dict.fromkeys(("judged_facts", "judged_share", "stated_facts"), "a star"),
  "lined_format": "<think>\n\n</think>\n<answer>\n\\boxed{4}\n</answer>",
  "pair_preference": _FRAME,
}
# What such questions have besides, frames A and B of a pair.
KNOWN = {
  **{"facts": ["A star."], "labels": ["a"], "preference": "A", "pair": 0}
}
# A question with the facts that rewards of chains read.
FACTS = {"choices": tuple("10234"), "names": (), "windows": (), "count": 0}
ASKED = Example(
  "file:1", "?", [], "", kind="fixture_interaction_counting", extra=FACTS
)
# A question that lists choices.
LISTED = "?\nA. x\nB. y\nC. z"
# Rewards that are logged only, which have NaN where they don't apply.
MEASURES = {
  "visual_cosine",
  "attention_share",
  "refocus_gain",
  "target_attention",
}
EXTRAS = {
  **dict.fromkeys(("math_answer", "geometry3k"), "math_verify"),
  **dict.fromkeys(("first_math_answer", "perception_r1"), "math_verify"),
  "meteor": "nltk",
  "rouge": "rouge_score",
}
PACKAGES = [advantages, losses, probes, rewards, token_weights]
FOLDER = pathlib.Path(__file__).parents[1] / "experiments"
TESTDATA = pathlib.Path(__file__).parent / "testdata"
EXPERTS, ANSWERS = TESTDATA / "experts.jsonl", TESTDATA / "answers.jsonl"
PAIRS = TESTDATA / "pairs.jsonl"
P, G, S, R, V, D = 8, 3, 6, 5, 11, 4
KEYS = S + R


def title(row) -> str:
  """How pytest calls a row."""
  if isinstance(row[0], str):
    return f"{row[0]}:{row[1]}"
  return f"{row[0].__name__}.{row[1]}"


# The table holds everything, and nothing else.


@pytest.mark.parametrize("package", PACKAGES)
def test_every_method_has_a_row(package):
  rows = [name for other, name, _ in METHODS if other is package]
  assert sorted(rows) == sorted(package.__all__), (
    f"add a row to METHODS for every name of {package.__name__}.__all__"
  )


def load(name: str):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def arms(name: str) -> set[str]:
  """Arms that the error for an unknown one lists; none if it may be any."""
  get_config = load(name).get_config
  try:
    get_config("nonesuch")
  except ValueError as error:
    return set(re.findall(r":(\w+)", str(error).split("expected", 1)[1]))
  except TypeError:  # no argument at all
    return {""}
  return set()


def test_every_experiment_has_a_row():
  found = set()
  for path in FOLDER.glob("*.py"):
    body = ast.parse(path.read_text("utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    if "get_config" in defined:
      found.add(path.stem)
  rows: dict[str, set[str]] = {}
  for name, arm in [*EXPERIMENTS, *LARGE]:
    rows.setdefault(name, set()).add(arm)
  message = "add a row to EXPERIMENTS for every arm of every get_config"
  assert set(rows) == found, message
  for name in found:
    assert rows[name] >= arms(name), message


# Data of every kind that a method may name.


def drawn(*shape, seed: int):
  values = np.random.default_rng(seed).normal(size=shape)
  return values.astype(np.float32)


def normal(*shape, seed: int):
  return jnp.asarray(drawn(*shape, seed=seed))


def make_mask():
  lengths = np.random.default_rng(0).integers(0, R + 1, (P, G))
  lengths[0] = (0, R, 1)
  return jnp.asarray(np.arange(R) < lengths[..., None])


def make_policies(seed: int):
  """Attention policies with some keys out of sight."""
  seen = np.arange(KEYS) < S + np.arange(R)[:, None]
  weights = np.where(seen, np.exp(drawn(P, G, R, KEYS, seed=seed)), 0)
  return weights / weights.sum(-1, keepdims=True)


def make_tagged():
  """Some tokens of every answer."""
  return np.broadcast_to(np.arange(R) % 3 == 1, (P, G, R))


@functools.cache
def make_fields() -> dict:
  """Computed by NumPy, which compiles nothing."""
  logprobs = -np.abs(drawn(P, G, R, seed=1))

  def size(*shape, seed):
    return np.abs(drawn(*shape, seed=seed))

  def near(seed):
    return logprobs + np.float32(0.3) * drawn(P, G, R, seed=seed)

  def but(values, place, value):
    values[place] = value
    return values

  def logits(width, seed):
    hidden, head = drawn(P, G, R, width, seed=seed), drawn(V, width, seed=9)
    return Logits(hidden, head, "vd", (0,), 1.0)

  one_right = np.float32(np.arange(G) % 2)
  spans = np.int8(np.arange(R) % 3 + 1)
  fields = {
    "mask": make_mask(),
    "rewards": but(drawn(P, G, seed=2), 0, 0.9),
    "advantages": drawn(P, G, seed=3),
    "token_weights": size(P, G, R, seed=4),
    "logprobs": logprobs,
    "logprobs_old": near(5),
    "logprobs_ref": near(6),
    "entropies": size(P, G, R, seed=7),
    "entropies_old": size(P, G, R, seed=8),
    "attention": make_policies(9),
    "attention_old": make_policies(10),
    "attention_teacher": make_policies(11),
    "logits": logits(D, 12),
    "logits_teacher": logits(D + 2, 13),
    "logprobs_sampler": near(14),
    "logprobs_average": near(23),
    "reward_accuracy": np.broadcast_to(one_right, (P, G)),
    "logprobs_blind": near(15),
    "nucleus_entropies_old": size(P, G, R, seed=16),
    "visual_cosines_old": but(drawn(P, 2, seed=24), 1, np.nan),
    "visual_entropy": but(size(P, seed=17), 1, np.nan),
    "pictured": np.arange(P) % 3 > 0,
    "visual_attention_old": size(P, G, R, seed=18),
    "attention_shares_old": size(P, G, R, 3, seed=22),
    "tagged": make_tagged(),
    "environment": make_tagged(),
    "on_region_old": size(P, G, R, seed=20),
    "on_visual_old": 2 + size(P, G, R, seed=21),
    "sink_ratio_old": size(P, G, R, seed=19),
    # The last answer of each group is an expert's.
    "sampled": np.broadcast_to(np.arange(G) < G - 1, (P, G)),
    "span": spans * np.asarray(make_mask(), np.int8),
    "epoch": np.int32(np.arange(P) % 4 + 1),
    "chosen": np.arange(G) == np.arange(P)[:, None] % 2,
    "twin": np.arange(P) % 2 == 1,
  }
  return jax.tree.map(jnp.asarray, fields)


def spoil(value, mask):
  """NaN, or another token, wherever there is padding."""
  if isinstance(value, Logits):
    hidden = spoil(value.hidden, mask)
    return dataclasses.replace(value, hidden=hidden)
  if value.ndim < 3:
    return value
  mask = mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
  other = jnp.nan
  if value.dtype == bool:
    other = ~value
  elif jnp.issubdtype(value.dtype, jnp.integer):
    other = (value + 1) % V
  return jnp.where(mask, value, other)


# A policy that is a table.


class Table(Scorer):
  """Scores answers by the token before and attends by the token itself."""

  def prefill(self, params, prompt, visual):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    keys, last = params["key"][prompt.tokens], prompt.tokens[:, -1]
    return Prefix(
      keys=keys,
      values=keys,
      mask=prompt.mask,
      next_position=prompt.next_position,
      last_hidden=params["next"][last],
      last_query=params["query"][last][:, None, None],
    )

  def __call__(self, params, prefix, tokens):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    first = prefix.last_hidden[:, None, None]
    first = jnp.broadcast_to(first, (*tokens.shape[:2], 1, V))
    logits = jnp.concatenate([first, params["next"][tokens[..., :-1]]], axis=2)
    logs = jax.nn.log_softmax(logits / self.temperature)
    logprobs = jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0]
    attention = None
    if self.layers:
      query, own = params["query"][tokens], params["key"][tokens]
      attention = models.attention_policy(
        Attention(
          # Without the scale of the softmax.
          queries=query[..., None, None, :] * D**0.5,
          keys=own[..., None, None, :],
          prefix_keys=prefix.keys[..., None, None, :],
          prefix_mask=prefix.mask,
          last_query=prefix.last_query * D**0.5,
        ),
        row=self.row,
      )
    return Scores(
      logprobs,
      -(jnp.exp(logs) * logs).sum(-1),
      attention,
      Logits(logits, jnp.eye(V), "dv", (), self.temperature),
    )

  def states(self, params, prompt, visual):
    own = params["key"].astype(jnp.float32)[prompt.tokens]
    return jnp.stack([own, own**2], axis=2)

  def weighed_rows(self, params, prompt, visual, tokens, weigh):
    prefix = self.prefill(params, prompt, visual)
    last = jnp.einsum("pd,psd->ps", prefix.last_query[:, 0, 0], prefix.keys)
    last = jax.nn.softmax(jnp.where(prefix.mask, last, -1e9))
    one = dataclasses.replace(self, layers=(-1,), row="self")
    attention = rows.plain(one(params, prefix, tokens).attention)
    return rows.weighed(attention, weigh(last))[..., None, :]


def make_params(seed: int) -> dict:
  return {
    "next": normal(V, V, seed=seed),
    "query": normal(V, D, seed=seed + 1),
    "key": normal(V, D, seed=seed + 2),
  }


def make_tokens(*shape, seed: int):
  values = np.random.default_rng(seed).integers(0, V, shape)
  return jnp.asarray(values, jnp.int32)


def make_prompt() -> Prompt:
  place = np.arange(S) - np.arange(P)[:, None] % 3
  visual = np.where((place >= 0) & (place < 2), place, -1)
  return Prompt(
    tokens=make_tokens(P, S, seed=11),
    mask=jnp.asarray(place >= 0),
    positions=jnp.asarray(np.stack(3 * [np.maximum(place, 0)], axis=-1)),
    visual_index=jnp.asarray(visual),
    next_position=jnp.full(P, S),
    region=jnp.asarray(np.where(visual == 0, 0.5, 0.0), jnp.float32),
    patches=small_models.no_patches(P),
    evidence=jnp.asarray(np.where(visual == 0, 1.0, 0.0), jnp.float32),
  )


def make_batch(scorer: Scorer, params, data) -> Batch:
  prefix = scorer.prefill(params, data["prompt"], None)
  return Batch(
    prompt=data["prompt"],
    visual=normal(P, 2, D, seed=31),
    tokens=data["tokens"],
    mask=data["mask"],
    fields={
      "ended": data["mask"].sum(-1) < R,
      "logprobs_sampler": scorer(params, prefix, data["tokens"]).logprobs,
    },
    prefix=prefix,
  )


@functools.cache
def make_inputs() -> dict:
  """What probes and experiments start from; parameters aren't per prompt."""
  return {
    "params": make_params(20),
    "params_old": jax.tree.map(
      lambda x, y: x + 0.1 * y, make_params(20), make_params(30)
    ),
    "params_reference": make_params(40),
    "data": {
      "prompt": make_prompt(),
      "tokens": make_tokens(P, G, R, seed=12),
      "mask": make_mask(),
      "rewards": make_fields()["rewards"],
    },
  }


# A case is a function of a dict of arrays. Each "data" has leading P.


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A row, built.

  Attributes:
    function: jitted; inputs to arrays, padding of the outputs set to zero.
    inputs: {"data": arrays with leading P, ...: anything}.
  """

  function: object
  inputs: dict

  def spoiled(self) -> dict:
    """The inputs with other values in the padding of prompts and answers."""
    data = dict(self.inputs["data"])
    mask = data.pop("mask")
    if "prompt" in data:
      prompt = data["prompt"]
      tokens = spoil(prompt.tokens, prompt.mask)
      data["prompt"] = dataclasses.replace(prompt, tokens=tokens)
    for name, value in data.items():
      if name != "prompt":
        data[name] = spoil(value, mask)
    return self.inputs | {"data": data | {"mask": mask}}


def bound_method(package, name, options) -> build.Bound:
  provided = {*make_fields(), "tokens", "prompt", "length", "ended", "key"}
  if package is probes:
    models_named = ("average", "reference", "teacher")
    provided = {
      *names.given(names.PROBES),
      *(f"params_{model}" for model in models_named),
      *(f"scorer_{model}" for model in models_named),
    }
  return build.bind(
    package, {"name": name, **options}, f"{name}", provided=provided
  )


def array_case(row) -> Case:
  """Losses with their gradients, advantages, token weights, rewards."""
  package, *_ = row
  bound = bound_method(*row)
  mask, tokens = make_mask(), make_tokens(P, G, R, seed=12)
  known = make_fields() | {
    "tokens": tokens,
    "prompt": make_prompt(),
    "length": mask.sum(-1),
    "ended": (mask & (tokens == 0)).any(-1),
  }
  data = {n: known[n] for n in {"mask", *bound.needs} - {"key"}}
  if "chosen" in data:  # a pair has two answers
    data = {n: x[:, :2] if x.ndim > 1 else x for n, x in data.items()}

  @jax.jit
  def value_and_gradient(inputs):
    data = inputs["data"]
    current = set(SCORES) & set(bound.needs)

    def loss(scores):
      found = bound(data | scores)
      values = found.values if isinstance(found, Measured) else found
      assert values.shape == data["mask"].shape[: values.ndim]
      reduction = "prompt_mean" if values.ndim == 1 else "sequence_mean"
      return reduce.total(values, getattr(reduce, reduction)(data["mask"]))

    return jax.value_and_grad(loss)({name: data[name] for name in current})

  @jax.jit
  def value(inputs):
    values = bound(inputs["data"] | {"key": jax.random.key(0)})
    assert values.shape in ((P, G), (P, G, R))
    if row[1] in MEASURES:
      values = jnp.where(jnp.isnan(values), 0.0, values)
    return values

  function = value_and_gradient if package is losses else value
  return Case(function, {"data": data})


def probe_case(row) -> Case:
  bound = bound_method(*row)
  scorer = Table(small_models.small_config(), 1.0, (-1,), "self")

  @jax.jit
  def function(inputs):
    data = inputs["data"]
    batch = make_batch(scorer, inputs["params"], data)
    context = batch.context(
      scorer=scorer,
      params=inputs["params"],
      scores_old=scorer(inputs["params"], batch.prefix, data["tokens"]),
      scorer_reference=scorer,
      params_reference=inputs["params_reference"],
      scorer_average=scorer,
      params_average=inputs["params_reference"],
      scorer_teacher=scorer,
      params_teacher=inputs["params"],
    )
    fields = bound(context)._asdict()
    assert tuple(fields) == build.provides(bound.function)

    def without_padding(value):
      if isinstance(value, Attention):
        value = models.attention_rows(value)
      if isinstance(value, Logits):
        value = value.hidden
      if value.ndim < 3:
        return value
      mask = data["mask"]
      return jnp.where(
        mask.reshape(*mask.shape, *[1] * (value.ndim - 3)), value, 0
      )

    return {name: without_padding(x) for name, x in fields.items()}

  return Case(function, make_inputs())


def experiment_config(name: str, arm: str):
  """The config of an arm, on the model and the data that ship."""
  get_config = load(name).get_config
  config = get_config(arm) if arm else get_config()
  plain = config_lib.get_config()
  with config.unlocked():
    config.train.minibatches = config.train.accumulate = 1
    if "teacher" in config.models:
      config.models.teacher.path = "tiny"
    if "path" in config.rollout:
      config.rollout.path = str(EXPERTS)
    if config.models.policy.path != "tiny":
      config.models.policy.path = "tiny"
      config.attention.layers = (-1,)
    if config.data.train.name == "Kitchens":
      config.data.train.count = 4  # Rewards read what its questions have.
      config.evaluation = plain.evaluation
    elif (
      config.data.train.name != "EasyVQA" and config.rollout.name != "paired"
    ):
      config.data.train = plain.data.train
      config.evaluation = plain.evaluation
    if not config.data.lengths:
      # Sizes from the data would be a look at all 48,000 questions.
      config.data.lengths = plain.data.lengths
      config.data.patches = plain.data.patches
    if config.rollout.name.startswith("given"):
      path = PAIRS if "pairs" in config.rollout.name else ANSWERS
      config.data.train = {"name": "Files", "path": str(path)}
  return config


def build_parts(config) -> parts_lib.Parts:
  """The parts of a run on one device, whose models needn't be here."""
  sizes = {"data": 1, "fsdp": 1, "tensor": 1}
  mesh = sharding.make_mesh(sizes, jax.devices()[:1])
  return parts_lib.build_parts(
    config,
    models_lib.compute_as(config, read_architecture(config.models.policy.path)),
    sharding.Layout(mesh, config.train.minibatches),
    models_lib.read_architectures(config, read_architecture),
  )


def build_latent_parts(config) -> parts_lib.Parts:
  """The parts of a run whose model has latent segments, of given answers."""
  sizes = {key: config.rollout[key] for key in config_lib.ROLLOUT_SIZES}
  config.rollout = sizes | {"name": "given", "answers": 1}
  read = read_architecture

  def with_segments(path):
    return dataclasses.replace(read(path), latent=Latent(1, 2))

  with mock.patch.dict(globals(), read_architecture=with_segments):
    return build_parts(config)


# Fields of answers and of the host that a batch has where they are named.
HELD = {"sampled", "chosen", "twin", "span", "epoch", "tagged", "environment"}


def first_two(tree):
  """The first two answers of each group, of all that leads with P and G."""
  return jax.tree.map(lambda x: x[:, :2] if x.shape[:2] == (P, G) else x, tree)


def make_step(parts: parts_lib.Parts, shares: bool = True):
  """The programs of a step after the answers, of a policy that is a table.

  Shares of the gradient, term by term, may be left out: they name what the
  update names.
  """
  programs, scorer = parts.programs, parts.scorer
  fixed_names = [
    name
    for name, model in parts.method.models.items()
    if not isinstance(model.source, models_lib.Average)
  ]

  def state_of(params) -> State:
    return State(
      step=jnp.zeros((), jnp.int32),
      trainable=params,
      frozen={},
      optimizer=parts.optimizer.init(params),
      running={},
      averages={
        name: state_lib.start_average(params)
        for name in parts_lib.averages(parts.method)
      },
      norms=weight.start(objective.weights_of(parts.method.terms)),
    )

  def function(inputs):
    data, old = inputs["data"], state_of(inputs["params_old"])
    fixed = dict.fromkeys(fixed_names, inputs["params_reference"])
    batch = make_batch(scorer, inputs["params_old"], data)
    added = {*parts.source.fields, *parts.method.fields}
    own = {n: make_fields()[n] for n in HELD & added}
    if "chosen" in own:  # a pair has two answers
      batch = first_two(batch)
      own["chosen"], data = own["chosen"][:, :2], first_two(data)
    batch = batch.with_fields(**own)
    fields, probed = programs.probe(old, fixed, batch)
    batch = batch.with_fields(**fields)
    for name, program in programs.probes_apart.items():
      there = dataclasses.replace(batch, visual=None, fields={}, prefix=None)
      batch = batch.with_fields(**program(fixed[name], there))
    batch = dataclasses.replace(batch, visual=None, prefix=None)
    key = jax.random.key(0)
    mask, fields = programs.prepare(batch, data["rewards"], key)
    batch = dataclasses.replace(batch.with_fields(**fields), mask=mask)
    state = state_of(inputs["params"])
    if shares:
      measured, _ = programs.shares(state, fixed, batch, 0)
      probed |= measured
    state, measured = programs.update(state, fixed, batch, 0)
    return probed | measured, state.trainable

  return function


def experiment_case(row, devices: int = 1) -> Case:
  with (
    mock.patch.object(parts_lib, "Scorer", Table),
    mock.patch.object(walk, "check"),  # traces the shapes of a model
  ):
    run = run_lib.build_run(experiment_config(*row), jax.devices()[:devices])
  return Case(jax.jit(make_step(run)), make_inputs())


# Sizes and places, which no function of a step names.
PLACES = {
  "prompts",
  "answers",
  "length",
  "path",
  "dtype",
  "param_dtype",
  "mesh",
}
STEP = (
  "losses",
  "probes",
  "advantage",
  "token_weights",
  "attention",
  "rollout",
)


def made_of(config) -> str:
  """What a step is made of: of equal ones the first is traced."""

  def bare(value):
    if isinstance(value, dict):
      return {k: bare(x) for k, x in value.items() if k not in PLACES}
    return value

  settings = config.to_dict()
  found = {name: settings[name] for name in (*STEP, "models")}
  return json.dumps(bare(found), sort_keys=True)


@functools.cache
def traced() -> set[str]:
  """Steps of large arms."""
  return set()


@pytest.mark.full
@pytest.mark.parametrize("row", LARGE, ids=title)
def test_every_large_arm_binds(row):
  """The slots of a config whose model isn't here get what they name."""
  name, arm = row
  if name in EXTRAS:
    pytest.importorskip(EXTRAS[name])
  config = load(name).get_config(arm)
  for model in ("policy", "teacher"):
    # What another experiment leaves is of the tiny model's kind.
    if config.models.get(model, {}).get("path", "").startswith("runs/"):
      config.models[model].path = "tiny"
  # As many as the prompts here divide into.
  config.train.minibatches = 1
  config.train.accumulate = min(config.train.accumulate, 2)
  with mock.patch.object(parts_lib, "Scorer", Table):
    parts = build_parts(config)
  assert parts.method.terms
  assert parts.method.rewards or config.rollout.name.startswith("given")
  if made_of(config) not in traced():
    jax.eval_shape(make_step(parts, shares=False), make_inputs())
  traced().add(made_of(config))


def reads_texts(row) -> bool:
  """Whether a row is a reward that runs on the host."""
  if row[0] is not rewards:
    return False
  return answers_lib.reads_texts(getattr(*row[:2]))


def has_state(row) -> bool:
  """Whether a row makes a term with state, which has tests of its own.

  Such a term calls the model's own functions; here the policy is a table.
  """
  annotation = build.signature(getattr(*row[:2])).return_annotation
  return annotation is Stateful


ROWS = [
  row for row in METHODS if not reads_texts(row) and not has_state(row)
] + EXPERIMENTS


# What the programs of a step know nothing of.
AROUND = ("seed", "data", "rewards", "evaluation", "checkpoint")


@functools.cache
def built_steps() -> dict[str, Case]:
  """Cases of experiments, by what their steps are made of."""
  return {}


@functools.cache
def built(index: int) -> Case:
  row = ROWS[index]
  if not isinstance(row[0], str):
    return probe_case(row) if row[0] is probes else array_case(row)
  settings = experiment_config(*row).to_dict()
  for name in AROUND:
    del settings[name]
  del settings["train"]["steps"]
  key = json.dumps(settings, sort_keys=True)
  if key not in built_steps():
    built_steps()[key] = experiment_case(row)
  return built_steps()[key]


@functools.cache
def computed(case: Case):
  return jax.device_get(case.function(case.inputs))


def expected(index: int):
  return computed(built(index))


# Experiments of every kind of run; the loops of others are theirs with terms
# that have rows of their own.
CORE = {
  *(("adavip", "data"), ("dapo", "runlocal"), ("dpo", "data")),
  *(("lora", "runlocal"), ("look_back", "runlocal"), ("opad", "runlocal")),
  *(("quickstart", "grpo"), ("quickstart", "ral"), ("sft", "data")),
  *(("tgrl", "EXPERTS,runlocal"), ("tor", "runlocal")),
}


# Those that are computed by default.
FIRST = {("quickstart", "ral"), ("sft", "data")}


def core_first(row):
  late = isinstance(row[0], str) and row not in FIRST
  return pytest.mark.full if late else ()


every_row = pytest.mark.parametrize(
  "index",
  [
    pytest.param(index, marks=core_first(row), id=title(row))
    for index, row in enumerate(ROWS)
  ],
)
# An experiment is methods, whose rows are computed in every way by default, and
# a loop of updates, which other tests run in bfloat16 and on meshes.
methods_first = pytest.mark.parametrize(
  "index",
  [
    pytest.param(
      index,
      marks=pytest.mark.full if isinstance(row[0], str) else (),
      id=title(row),
    )
    for index, row in enumerate(ROWS)
    if not isinstance(row[0], str) or row in CORE
  ],
)


@every_row
def test_value_and_gradient_are_finite(index):
  leaves = jax.tree.leaves(expected(index))
  assert leaves
  assert all(np.isfinite(leaf).all() for leaf in leaves)
  assert any((np.asarray(leaf) != 0).any() for leaf in leaves)


@every_row
def test_padding_never_matters_and_nothing_recompiles(index):
  case = built(index)
  one = expected(index)
  two = case.function(case.spoiled())
  jax.tree.map(np.testing.assert_array_equal, two, one)
  assert case.function._cache_size() == 1


def in_bfloat16(inputs):
  return jax.tree.map(
    lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, inputs
  )


@pytest.mark.parametrize(
  "row",
  [
    pytest.param(row, marks=core_first(row), id=title(row))
    for row in EXPERIMENTS
  ],
)
def test_experiment_takes_bfloat16(row):
  index = ROWS.index(row)
  case = built(index)
  found = jax.eval_shape(case.function, in_bfloat16(case.inputs))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, expected(index)
  )


@pytest.mark.full
@methods_first
def test_bfloat16_is_finite(index):
  case = built(index)
  values = jax.device_get(
    jax.tree.leaves(case.function(in_bfloat16(case.inputs)))
  )
  assert all(np.isfinite(v.astype(np.float32)).all() for v in values)


@pytest.mark.full
@methods_first
def test_eight_devices_equal_one(index):
  row = ROWS[index]
  # A run's programs are bound to its mesh.
  case = experiment_case(row, 8) if isinstance(row[0], str) else built(index)
  sizes = {"data": 8, "fsdp": 1, "tensor": 1}
  layout = sharding.Layout(sharding.make_mesh(sizes))
  inputs = {
    name: layout.reshard(value)
    if name == "data"
    else jax.device_put(value, layout.everywhere)
    for name, value in case.inputs.items()
  }
  assert len(inputs["data"]["mask"].devices()) == 8
  found = jax.device_get(case.function(inputs))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    expected(index),
  )


def ask_judge(conversations, **options):
  """Says that a text with a star in it states the only fact."""
  texts = [
    user["content"].rpartition("Response:")[2] for _, user in conversations
  ]
  return [f"<info1>{int('star' in text)}</info1>" for text in texts]


def text_case(row, texts):
  """A reward of texts, and two questions whose answers they all are."""
  if row[1] in EXTRAS:
    pytest.importorskip(EXTRAS[row[1]])
  bound = build.bind(
    rewards,
    {"name": row[1], **row[2]},
    row[1],
    provided=[*names.given(names.TEXTS), "ended", "ask_judge"],
  )
  asked = ASKED if row[1] in TEXTS else Example("file:1", LISTED, [], "")
  shape = (2, len(texts))
  return bound, {
    "text": [texts, texts],
    "answer": RIGHT.get(row[1], ["B", "C"]),
    "example": [
      dataclasses.replace(asked, extra=FACTS | KNOWN | {"side": side})
      for side in "AB"
    ],
    "ask_judge": ask_judge,
    "length": jnp.full(shape, 17),
    "ended": jnp.ones(shape, bool),
  }


every_reward_of_texts = pytest.mark.parametrize(
  "row", [row for row in METHODS if reads_texts(row)], ids=title
)


@every_reward_of_texts
def test_reward_takes_random_texts(row):
  """A thousand; a hundred where another package reads them, in 5 ms each."""
  texts = random_texts(100 if row[1] in EXTRAS else 1000)
  bound, context = text_case(row, texts)
  values = bound(context)
  assert values.shape == (2, len(texts)) and np.isfinite(values).all()


@every_reward_of_texts
def test_reward_is_a_number_for_any_text(row):
  """White space around a text is its padding."""
  right = RIGHT.get(row[1], ["B", "C"])
  block = TEXTS.get(row[1], f"<answer>{right[0]}</answer>")
  texts = ["", block, "<answer>", "</answer><think>", "é\x00\n"]
  bound, context = text_case(row, texts)
  values = bound(context)
  assert values.shape == (2, 5) and values.dtype == np.float32
  best = np.float32(BEST.get(row[1], 1.0))
  assert (np.abs(values) <= (6 if best < 0 else 1)).all()
  # A number of facts is divided by a millionth more.
  assert values[0, 1] == pytest.approx(best, abs=2e-6)
  if row[1] in STRICT:
    return
  spaced = [[f"\n {text}\n" for text in texts]] * 2
  np.testing.assert_array_equal(bound(context | {"text": spaced}), values)


@pytest.mark.parametrize("row", EXPERIMENTS, ids=title)
def test_experiment_weighs_what_it_names(row):
  """No term of an experiment is switched off or lacks its reduction."""
  for name, spec in experiment_config(*row).losses.to_dict().items():
    assert spec["weight"] > 0, name
    assert spec["reduce"], name
