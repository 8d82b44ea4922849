"""What `experiments.bench.accelerator` measures, part by part.

A part is a function of `Sizes` that yields rows. A row says in `work` what was
run, and some of: `seconds`, `rate`, `share` of the device's peak, `plan_gib`
that `mmrl.plan` counts, `compile_s`, `note`.
"""

from collections.abc import Callable, Iterator
import dataclasses
import importlib.util
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import clock, generate, peak, random_model, sparse, step
from mmrl.models.kernels import attention, blocked, cudnn
from mmrl.plan import chips, flops

Row = dict[str, Any]
_GIB = 2**30
_REPEATS = 3
_LONGEST_NOTE = 160


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of what is measured: those of a device, unless others are given.

  Attributes:
    model: hub id of the architecture; "" is that of the benches.
    dtype: of parameters and products.
    methods: those of a step, which are compared with the first.
    lora: rank of adapters that train alone; 0 trains all but the tower.
    prompts, answers, count, length: P, G, R and S of a step.
    side: patches along the side of a prompt's picture.
    kernels: lengths of sequences whose attention is measured alone.
    prefill: lengths of prompts.
    behind: length of the prompt that decoded answers stand behind.
    batches: numbers of answers that are decoded at a time.
    matrix: side of the matrices that are multiplied.
    copied: bytes that are copied.
  """

  model: str = ""
  dtype: str = "bfloat16"
  methods: tuple[str, ...] = ("GRPO", "RAL")
  lora: int = 0
  prompts: int = 8
  answers: int = 8
  count: int = 256
  length: int = 1024
  side: int = 32
  kernels: tuple[int, ...] = (2048, 8192)
  prefill: tuple[int, ...] = (2048, 8192)
  behind: int = 2048
  batches: tuple[int, ...] = (1, 16, 64, 256)
  matrix: int = 8192
  copied: int = 2**30


TINY = Sizes(
  dtype="float32",
  prompts=2,
  answers=2,
  count=4,
  length=40,
  side=8,
  kernels=(64,),
  prefill=(64,),
  behind=64,
  batches=(2,),
  matrix=64,
  copied=2**20,
)


def one_line(error: BaseException) -> str:
  """An error in one line that fits a table."""
  text = " ".join(str(error).split()) or type(error).__name__
  return f"failed: {text}".replace("|", "/")[:_LONGEST_NOTE]


def attempt(work: str, measure: Callable[[], Row]) -> Row:
  """Measures one thing; what fails is a row that says so."""
  try:
    return {"work": work} | measure()
  except Exception as error:
    return {"work": work, "note": one_line(error)}


def fastest() -> float:
  """FLOP/s that shares are of; see `peak`."""
  return peak.flops_per_second()[0]


def _flags(parser, sizes: Sizes, *more: str):
  """Flags of another bench, for the model and picture of these sizes."""
  pixels = 14 * sizes.side
  given = [f"--architecture={sizes.model}", f"--dtype={sizes.dtype}"]
  return parser.parse_args([*given, f"--image-size={pixels}", *more])


def device(sizes: Sizes) -> Iterator[Row]:
  """The device, how fast it multiplies, and how fast it copies."""
  one = jax.devices()[0]
  limit = (one.memory_stats() or {}).get("bytes_limit")
  chip = chips.of(one)
  yield {
    "work": "device",
    "platform": one.platform,
    "note": ", ".join(
      [
        f"{len(jax.devices())} x {one.device_kind}",
        f"{limit / _GIB:.1f} GiB to use" if limit else "memory unknown",
        f"{chip.flops / 1e12:.0f} TFLOP/s published"
        if chip
        else "no data sheet",
        f"jax {jax.__version__}",
      ]
    ),
  }

  def product() -> Row:
    found = peak.measure(sizes.matrix, "bfloat16")
    rate = {"rate": f"{found / 1e12:,.3g} TFLOP/s"}
    return rate | ({"share": found / chip.flops} if chip else {})

  def copy() -> Row:
    array = jnp.zeros(sizes.copied, jnp.uint8)
    spent = clock.seconds(jax.jit(lambda x: x + 1), array, repeats=5)
    moved = 2 * sizes.copied / spent
    return {"seconds": spent, "rate": f"{moved / 1e9:,.3g} GB/s"}

  yield attempt(f"product of {sizes.matrix} x {sizes.matrix} bfloat16", product)
  yield attempt(f"copy of {sizes.copied / _GIB:.3g} GiB", copy)


def _heads(sizes: Sizes):
  flags = _flags(sparse.make_parser(""), sizes)
  return random_model.sizes(flags, 512)["text"]


def kernel_name(queries) -> str:
  """The kernel that long attention of such queries takes on this device."""
  platform = jax.default_backend()
  if platform == "gpu":
    return "cuDNN" if cudnn.takes(queries) else "blocked, as cuDNN refuses"
  return "splash" if platform == "tpu" else "blocked"


def kernels(sizes: Sizes) -> Iterator[Row]:
  """Attention by the device's kernel, and by the blocked form, in turn."""
  text, rng = _heads(sizes), np.random.default_rng(0)
  heads, groups = text.num_attention_heads, text.num_key_value_heads

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), sizes.dtype)

  for length in sizes.kernels:
    size, count = text.head_dim, max(length // 8, 1)
    mask = jnp.ones((1, length), bool)
    keys, values = (normal(1, length, groups, size) for _ in range(2))
    own = [normal(1, 8, count, n, size) for n in (heads, groups, groups)]
    by_blocks = attention.in_line(
      lambda *given: blocked.attend_answers(*given, answers=8)
    )
    works = {
      f"causal, {length} tokens": (
        (attention.attend_causal, blocked.attend_causal),
        (normal(1, length, heads, size), keys, values, mask),
      ),
      f"8 answers of {count} behind {length}": (
        (attention.attend_answers, by_blocks),
        (own[0], keys, values, mask, *own[1:]),
      ),
    }
    for name, (forms, arrays) in works.items():
      for kind, of in (("forward", _plain), ("with gradient", gradient)):
        yield from _compared(
          f"{name}, {kind}",
          {
            kernel_name(arrays[0]): of(forms[0], arrays),
            "blocked form": of(forms[1], arrays),
          },
          arrays,
        )


def _plain(function, arrays):
  del arrays
  return function


def gradient(function, arrays):
  """Value and gradients by all arrays but masks."""
  places = [i for i, x in enumerate(arrays) if x.dtype != bool]

  def loss(*given):
    return jnp.square(function(*given).astype(jnp.float32)).mean()

  return jax.grad(loss, argnums=places)


def _compared(work: str, forms: dict, arrays) -> Iterator[Row]:
  """Rows of forms of one computation, compiled apart and run in turn."""
  rows, ready = {}, {}
  for name, function in forms.items():

    def compile_(name=name, function=function) -> Row:
      began = time.perf_counter()
      compiled = jax.jit(function).lower(*arrays).compile()
      spent = time.perf_counter() - began
      jax.block_until_ready(compiled(*arrays))
      ready[name] = compiled
      temporary = compiled.memory_analysis().temp_size_in_bytes
      return {"compile_s": spent, "plan_gib": temporary / _GIB}

    rows[name] = attempt(f"{work}: {name}", compile_)
  spent = clock.in_turn(
    {k: lambda one=one: one(*arrays) for k, one in ready.items()}, 5
  )
  slowest = max(spent.values(), default=0.0)
  for name, row in rows.items():
    if name in spent:
      row |= {"seconds": spent[name]}
      if len(spent) > 1 and spent[name] < slowest:
        row["note"] = f"{slowest / spent[name]:.2f} times as fast"
    yield row


def forward(sizes: Sizes) -> Iterator[Row]:
  """Prefill of one prompt, and decoding of one token at several batches."""
  flags = _flags(sparse.make_parser(""), sizes)
  model, rng = random_model.build(flags), np.random.RandomState(0)
  config, best = model.config, fastest()

  def run(make, count: int, work: int) -> Row:
    began = time.perf_counter()
    program, arguments = make()
    compiled = time.perf_counter() - began
    spent = clock.seconds(program, *arguments, repeats=5)
    temporary = program.memory_analysis().temp_size_in_bytes
    return {
      "seconds": spent,
      "rate": f"{count / spent:,.0f} tokens/s",
      "share": work / spent / best,
      "plan_gib": temporary / _GIB,
      "compile_s": compiled,
    }

  for length in sizes.prefill:
    yield attempt(
      f"prefill, 1 x {length:,} tokens",
      lambda length=length: run(
        lambda: sparse.prefill_program(
          model.params, config, sparse.prompt(rng, length)
        ),
        length,
        flops.forward(flops.prefill(config, length)),
      ),
    )
  try:
    before = sparse.prefix(config, rng, sizes.behind)
  except Exception as error:
    yield {"work": "decoding", "note": one_line(error)}
    return
  for batch in sizes.batches:
    yield attempt(
      f"decoding, 1 token of {batch} answers behind {sizes.behind:,}",
      lambda batch=batch: run(
        lambda: sparse.decode_program(model.params, config, before, batch),
        batch,
        flops.forward(flops.extend(config, sizes.behind, batch, 1)),
      ),
    )


def whole(sizes: Sizes) -> Iterator[Row]:
  """Steps and sampling as users run them, with tokenizer and pictures."""
  for name, bench, field in (
    ("sampling", generate, "generate_s"),
    ("GRPO step", step, "step_s"),
  ):

    def run(bench=bench, field=field) -> Row:
      flags = _flags(bench.make_parser(""), sizes, *_work(sizes, bench))
      line = bench.measure(flags)
      rate = {"rate": f"{line['new_tokens_per_s']:,} tokens/s"}
      return rate | {"seconds": line[field], "compile_s": line["compile_s"]}

    yield attempt(f"{name}: mmrl", run)


def peers(sizes: Sizes) -> Iterator[Row]:
  """The same by Transformers and TRL, where torch has the device."""
  missing = [
    name
    for name in ("torch", "transformers", "trl", "datasets")
    if importlib.util.find_spec(name) is None
  ]
  if missing:
    note = f"left out: {' and '.join(missing)} not installed"
    yield {"work": "Transformers and TRL", "note": note}
    return
  import torch

  from experiments.bench import peers as peers_lib

  where = "cuda" if torch.cuda.is_available() else "cpu"
  if where == "cpu" and sizes.model:
    note = "left out: torch sees no GPU"
    yield {"work": "Transformers and TRL", "note": note}
    return
  for name, work, field in (
    ("sampling: Transformers", "generate", "generate_s"),
    ("GRPO step: TRL", "step", "step_s"),
  ):

    def run(work=work, field=field) -> Row:
      more = work, f"--device={where}", *_work(sizes, step)
      flags = _flags(peers_lib.make_parser(""), sizes, *more)
      return {"seconds": peers_lib.measure(flags)[field]}

    yield attempt(name, run)


def _work(sizes: Sizes, bench) -> list[str]:
  """Flags of what is sampled, and of the steps of it."""
  given = [f"--prompts={sizes.prompts}", f"--group={sizes.answers}"]
  given += [f"--new-tokens={sizes.count}"]
  if bench is step:
    return [*given, "--steps=4", "--warmup=1", "--micro=2", "--grad-ckpt"]
  return [*given, f"--repeats={_REPEATS}"]
