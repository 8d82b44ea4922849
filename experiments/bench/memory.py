"""Temporary memory of a RAL update over that of a GRPO update.

  pip install -e '.[tpu]'
  python -m experiments.bench.memory --topology v5p:2x2x1

Compiles both updates of one prompt's answers for one chip of the topology,
from any machine and without allocating anything, and prints one JSON line:
XLA's own figures. The decoder is Qwen2.5-VL-3B's with `--layers` layers, 36
unless less is asked for; the vision tower is frozen, and its output an input.
`temporary` is what an update takes besides its inputs (`arguments`:
parameters, optimiser state, batch) and outputs; `ratio` is RAL's over GRPO's,
of which the aim is at most 1.02, and `flops_ratio` the same of the updates'
FLOPs by the formula of `mmrl.plan.flops`. `maps_gb` is what holding the
attention maps of all layers and answers would take, in `--dtype`.
"""

import argparse
import dataclasses
import json
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from experiments.bench import random_model
from mmrl import config as config_lib
from mmrl import probes
from mmrl.machines import sharding
from mmrl.models import parameters
from mmrl.plan import flops
from mmrl.probes.scores import Scorer
from mmrl.train import objective, step
from mmrl.train.parts import make_optimizer
from mmrl.train.state import State
from mmrl.types import Batch, Prompt


def parse_flags() -> argparse.Namespace:
  """The sizes."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  add = parser.add_argument
  add("--topology", default="v5p:2x2x1", help="or cpu")
  add("--layers", type=int, default=36, help="of the decoder; all are 36")
  add("--prompt-length", type=int, default=8192, help="S")
  add("--answer-length", type=int, default=768, help="R")
  add("--answers", type=int, default=8, help="G")
  add("--visual", type=int, default=2048, help="visual tokens of the prompt")
  add("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
  add(
    "--remat",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="compute layers again in the backward pass",
  )
  return parser.parse_args()


def shape(*sizes: int, dtype="float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def make_arguments(flags: argparse.Namespace, scorer: Scorer, optimizer):
  """Shapes of a state and of a batch of one prompt, as a run has them."""
  model, new = scorer.config, (1, flags.answers, flags.answer_length)
  length, width = flags.prompt_length, model.text.hidden_size
  params = jax.tree.map(
    lambda x: shape(*x.shape, dtype=flags.dtype), parameters.shapes(model)
  )
  trainable, frozen = parameters.partition(params, ("vision/.*",))
  state = State(
    step=shape(dtype="int32"),
    trainable=trainable,
    frozen=frozen,
    optimizer=jax.eval_shape(optimizer.init, trainable),
    running={},
    averages={},
    norms={},
  )
  prompt = Prompt(
    tokens=shape(1, length, dtype="int32"),
    mask=shape(1, length, dtype="bool"),
    positions=shape(1, length, 3, dtype="int32"),
    visual_index=shape(1, length, dtype="int32"),
    next_position=shape(1, dtype="int32"),
    region=shape(1, length),
    patches=None,
  )
  visual = shape(1, flags.visual, width, dtype=flags.dtype)
  tokens = shape(*new, dtype="int32")
  prefix = jax.eval_shape(scorer.prefill, params, prompt, visual)
  old = jax.eval_shape(
    lambda *arrays: probes.behaviour(scorer(*arrays)), params, prefix, tokens
  )
  fields = old._asdict() | {
    "logprobs_ref": shape(*new),
    "advantages": shape(*new[:2]),
    "token_weights": shape(*new),
  }
  return state, Batch(prompt, visual, tokens, shape(*new, dtype="bool"), fields)


def compile_update(flags: argparse.Namespace, config, device: jax.Device):
  """The update of a config, compiled for a device."""
  model = dataclasses.replace(
    random_model.architecture(random_model.SMALL, flags.layers),
    dtype=flags.dtype,
    remat=flags.remat,
  )
  scorer = Scorer(model, 1.0, tuple(config.attention.layers), "self")
  specs = config.to_dict()
  optimizer = make_optimizer(
    specs["optimizer"], specs["schedule"], config.clip_norm
  )
  state, batch = make_arguments(flags, scorer, optimizer)
  provided = (*batch.fields, "mask", "logprobs", "entropies", "attention")
  terms = objective.bind_terms(
    objective.resolve_terms(specs["losses"]), provided=provided, remedies={}
  )
  loss = step.make_loss(scorer, terms, ())
  layout = sharding.on_one(device)
  update = step.make_update(
    *(loss, terms, optimizer, {}, layout), accumulate=1, dtype=flags.dtype
  )
  there = layout.everywhere
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
    (state, {}, batch, shape(dtype="int32")),
  )
  return update.lower(*arguments).compile()


def main() -> None:
  """Compiles both updates and prints the line."""
  flags = parse_flags()
  if flags.topology == "cpu":
    device = jax.devices("cpu")[0]
  else:
    device = topologies.get_topology_desc(flags.topology, "tpu").devices[0]
  row = vars(flags) | {"device": device.device_kind}
  for name, config in (
    ("grpo", config_lib.get_config()),
    ("ral", config_lib.add_ral(config_lib.get_config())),
  ):
    start = time.time()
    found = compile_update(flags, config, device).memory_analysis()
    row |= {
      f"{name}_temporary_gb": found.temp_size_in_bytes / 1e9,
      f"{name}_arguments_gb": found.argument_size_in_bytes / 1e9,
      f"{name}_compile_s": round(time.time() - start),
    }
  model = random_model.architecture(random_model.SMALL, flags.layers)
  grpo, ral = (
    flops.step(
      model,
      grids=[],
      lengths=[flags.prompt_length],
      answers=flags.answers,
      count=flags.answer_length,
      rows_probed=1,
      rows_trained=layers,
      reference=False,
      epochs=1,
    )["update"]
    for layers in (0, 1)
  )
  row["flops_ratio"] = ral / grpo
  heads = model.text.num_attention_heads
  maps = flags.layers * flags.answers * heads * jnp.dtype(flags.dtype).itemsize
  keys = flags.prompt_length + flags.answer_length
  row["ratio"] = row["ral_temporary_gb"] / row["grpo_temporary_gb"]
  row["maps_gb"] = maps * keys**2 / 1e9
  print(
    json.dumps(
      {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    )
  )


if __name__ == "__main__":
  main()
