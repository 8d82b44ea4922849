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
_BODY = re.compile(r"body=%?([\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*index=(\d+)")
_RESULT = re.compile(r"ROOT .* tuple\((.*)\)")
_OPERATION = re.compile(r"= (.*?) ([\w-]+)\(")


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Sums counts and bytes of each kind of collective, as often as each runs.

  Bytes are those of its result on one chip. A loop runs as often as its bound
  and its step imply: exact for a scan, the most there can be for a decoding
  loop, which may end early or begin late. Loops whose bounds are data (blocks
  of attention, which move nothing) count once. A collective that the compiler
  has cut into parts, to compute meanwhile, is in each of them; they share its
  channel, and count as the one that runs least.
  """
  bodies, entry = _computations(text)
  # By kind and channel, by line: (times, bytes).
  found: dict = collections.defaultdict(dict)

  def visit(name: str, times: int) -> None:
    for line in bodies.get(name, ()):
      operation = _OPERATION.search(line)
      if not operation:
        continue
      result, kind = operation.groups()
      inner = times
      if kind == "while":
        inner *= _turns(bodies, line)
      base = kind.removesuffix("-start")
      if base in _COLLECTIVES:
        channel = _CHANNEL.search(line)
        parts = found[base, channel[1] if channel else line]
        before, _ = parts.get(line, (0, 0))
        parts[line] = before + times, _size(result, kind)
      called = _CALLED.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [b.strip().lstrip("%") for b in branches.split(",")]
      for callee in called:
        visit(callee, inner)

  visit(entry, 1)
  totals = {name: {"count": 0, "bytes": 0} for name in _COLLECTIVES}
  for (name, _), parts in found.items():
    times, size = min(parts.values())
    totals[name]["count"] += times
    totals[name]["bytes"] += times * size
  return {name: total for name, total in totals.items() if total["count"]}


def _turns(bodies: dict[str, list[str]], line: str) -> int:
  """Counts the iterations of a loop from 0 up to a constant; else 1."""
  condition, body = (
    "\n".join(bodies[name])
    for name in (_CONDITION.findall(line)[0], _BODY.findall(line)[0])
  )
  bound = max(map(int, _CONSTANT.findall(condition)), default=1)
  counter = _COUNTER.search(condition)
  result = _RESULT.search(body)
  if not (counter and result):
    return bound
  # The counter's next value: its own plus a constant.
  following = re.findall(r"%[\w.-]+", result[1])[int(counter[1])]
  step = re.search(
    rf"{re.escape(following)} = \S+ add\(%[\w.-]+, (%[\w.-]+)\)", body
  )
  value = step and re.search(
    rf"{re.escape(step[1])} = \S+ constant\((\d+)\)", body
  )
  return -(-bound // int(value[1])) if value else bound


def _size(result: str, kind: str) -> int:
  """Counts bytes of a result; a started operation has its operand in front."""
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
