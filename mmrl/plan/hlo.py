"""Collectives of a compiled program, and the bytes that they move."""

import collections
import math
import re

_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
  "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_OPERATION = re.compile(r"= (.*?) ([\w-]+)\(")


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Counts and bytes of each kind of collective, as often as each runs.

  Bytes are those of its result on one chip. A loop turns as often as the
  largest number in its condition says: exact for a scan, the most there can be
  for a decoding loop, which may end early or begin late. Loops whose bounds are
  data (blocks of attention, which move nothing) count once.
  """
  bodies, entry = _computations(text)
  found: dict = collections.defaultdict(lambda: {"count": 0, "bytes": 0})

  def visit(name: str, times: int) -> None:
    for line in bodies.get(name, ()):
      operation = _OPERATION.search(line)
      if not operation:
        continue
      result, kind = operation.groups()
      inner = times
      if kind == "while":
        condition = "\n".join(bodies[_CONDITION.search(line)[1]])
        inner *= max(map(int, _BOUND.findall(condition)), default=1)
      for collective in _COLLECTIVES:
        if kind in (collective, f"{collective}-start"):
          found[collective]["count"] += times
          found[collective]["bytes"] += times * _size(result, kind)
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [b.strip().lstrip("%") for b in branches.split(",")]
      for callee in called:
        visit(callee, inner)

  visit(entry, 1)
  return {name: dict(found[name]) for name in _COLLECTIVES if name in found}


def _size(result: str, kind: str) -> int:
  """Bytes of a result; a started operation has its operand in front."""
  sizes = [
    _BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
    for dtype, dims in _SHAPE.findall(result)
  ]
  return max(sizes, default=0) if kind.endswith("-start") else sum(sizes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  name = entry = ""
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
    elif name:
      bodies[name].append(line)
  return bodies, entry
