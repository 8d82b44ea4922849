"""Mutants of a module: its source with one expression changed.

An operator takes a node of the syntax tree and yields what may stand in its
place. Nothing is changed in docstrings, annotations, decorators and texts, nor
in what is raised.
"""

import ast
import collections
from collections.abc import Iterator
import copy
import dataclasses
import itertools
import re


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A module with one change.

  Attributes:
    name: file, function, operator and the line as it is now, the change in
      parentheses: it outlives changes elsewhere.
    line: the line as it was.
    operator: name of the operator.
    file: the module's, below `mmrl/`.
    source: the whole of the module.
  """

  name: str
  line: str
  operator: str
  file: str
  source: str


def sign(node):
  """`-a` is `a`; `a + b` is `a - b` and the other way round."""
  match node:
    case ast.UnaryOp(ast.USub(), operand):
      if not isinstance(operand, ast.Constant):
        yield operand
    case ast.BinOp(op=ast.Add()) | ast.AugAssign(op=ast.Add()):
      yield change(node, op=ast.Sub())
    case ast.BinOp(op=ast.Sub()) | ast.AugAssign(op=ast.Sub()):
      yield change(node, op=ast.Add())


def term(node):
  """A term or a factor is dropped."""
  match node:
    case ast.BinOp(left, ast.Add() | ast.Mult(), right):
      yield from (left, right)
    case ast.BinOp(left, ast.Sub() | ast.Div() | ast.FloorDiv() | ast.Mod()):
      yield left
    case ast.AugAssign(target):
      yield ast.Assign([target], target, lineno=node.lineno)


def edge(node):
  """`<` is `<=`, `==` is `!=`, the least is the largest."""
  swaps = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq}
  swaps |= {new: old for old, new in swaps.items()}
  if isinstance(node, ast.Compare):
    for i, op in enumerate(node.ops):
      if type(op) in swaps:
        ops = [*node.ops[:i], swaps[type(op)](), *node.ops[i + 1 :]]
        yield change(node, ops=ops)
  yield from renamed(node, ("min", "max"), ("minimum", "maximum"))
  if isinstance(node, ast.keyword) and node.arg == "side":
    other = {"left": "right", "right": "left"}[node.value.value]
    yield change(node, value=ast.Constant(other))


def constant(node):
  """A number is another; an epsilon is 0, or a hundred times as much."""
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    if 0 < node.value < 1e-3:
      values = (0.0, 100 * node.value)
    elif isinstance(node.value, float):
      values = (2 * node.value or 1.0,)
    else:
      values = ({0: 1, 1: 0}.get(node.value, node.value + 1),)
    yield from map(ast.Constant, values)
  elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
    yield ast.Constant(not node.value)


def epsilon(node):
  """An epsilon stands outside of the root."""
  match node:
    case ast.Call(
      ast.Attribute(attr="sqrt"), [ast.BinOp(inside, ast.Add(), e)]
    ):
      yield ast.BinOp(change(node, args=[inside]), ast.Add(), e)


def reduction(node):
  """A sum is a mean, any is all, an axis is all axes."""
  yield from renamed(
    node,
    ("sum", "mean"),
    ("any", "all"),
    ("std", "var"),
    ("cumsum", "cumprod"),
    ("token_mean", "sequence_mean"),
    ("token_sum", "sequence_sum"),
  )
  if isinstance(node, ast.Call):
    for kept in node.keywords:
      if kept.arg in ("axis", "where", "initial", "ddof"):
        rest = [keyword for keyword in node.keywords if keyword is not kept]
        yield change(node, keywords=rest)
    if method(node) in ("sum", "any", "mean") and node.args:
      yield change(node, args=[])
    if method(node) == "psum":
      yield node.args[0]


def mask(node):
  """`where` takes one side, `&` one operand, `~` is dropped."""
  match node:
    case ast.Call(ast.Attribute(attr="where"), [_, yes, no]):
      yield from (yes,) if isinstance(no, ast.Constant) else (yes, no)
    case ast.BinOp(left, ast.BitAnd() | ast.BitOr(), right):
      yield from (left, right)
    case ast.UnaryOp(ast.Invert()):
      yield node.operand


def gradient(node):
  """A gradient passes where it was stopped."""
  if method(node) == "stop_gradient":
    yield node.args[0]


def stop(node):
  """A gradient stops at what is returned."""
  if isinstance(node, ast.Return) and node.value:
    stopper = ast.parse("jax.lax.stop_gradient").body[0].value
    yield change(node, value=ast.Call(stopper, [node.value], []))


def bound(node):
  """A bound is dropped."""
  if method(node) in ("minimum", "maximum"):
    yield from node.args
  if method(node) == "clip":
    value, low, high = node.args
    none = ast.Constant(None)
    yield change(node, args=[value, none, high])
    yield change(node, args=[value, low, none])


def function(node):
  """An elementary function is left out, or its neighbour."""
  yield from renamed(node, ("exp", "expm1"), ("log", "log1p"))
  if method(node) in ("abs", "sqrt", "exp", "expm1", "sigmoid"):
    yield node.args[0]
  if isinstance(node, ast.Call) and method(node) == "astype":
    yield node.func.value


def branch(node):
  """The other branch is taken, a condition is dropped, a check too."""
  match node:
    case ast.IfExp():
      yield from (node.body, node.orelse)
    case ast.BoolOp():
      for i in range(len(node.values)):
        values = node.values[:i] + node.values[i + 1 :]
        yield change(node, values=values) if len(values) > 1 else values[0]
    case ast.If():
      never = ast.BoolOp(ast.And(), [ast.Constant(False), node.test])
      yield change(node, test=never)


OPERATORS = (
  *(sign, term, edge, constant, epsilon, reduction),
  *(mask, gradient, stop, bound, function, branch),
)


def change(node: ast.AST, **fields) -> ast.AST:
  """A copy with other fields."""
  node = copy.copy(node)
  for name, value in fields.items():
    setattr(node, name, value)
  return node


def method(node: ast.AST) -> str | None:
  """What is called: `sum` of `values.sum()`."""
  match node:
    case ast.Call(ast.Attribute(attr=name)) | ast.Call(ast.Name(name)):
      return name
  return None


def renamed(node: ast.AST, *pairs: tuple[str, str]):
  """A call of one of the pair calls the other."""
  for one, two in (*pairs, *(pair[::-1] for pair in pairs)):
    match node:
      case ast.Call(ast.Attribute(attr=name)) if name == one:
        yield change(node, func=change(node.func, attr=two))
      case ast.Call(ast.Name(name)) if name == one:
        yield change(node, func=ast.Name(two))


def mutants(file: str, source: str) -> list[Mutant]:
  """All mutants of a module, in the order of the source."""
  data = source.encode()
  lines = data.splitlines(keepends=True)
  starts = [0, *itertools.accumulate(map(len, lines))]
  found, sources, names = [], set(), collections.Counter()
  for function, node in _nodes(ast.parse(source), ""):
    for operator in OPERATORS:
      if operator is stop and not re.match("losses/(?!reduce)", file):
        continue  # Nothing else has a gradient: reductions are weights.
      for new in operator(node):
        changed = _replaced(data, starts, node, new)
        if changed in sources:
          continue
        sources.add(changed)
        old = source.splitlines()[node.lineno - 1].strip()
        line = changed.splitlines()[node.lineno - 1].strip()
        where = f"{file} {function}".strip()
        name = f"{where} {operator.__name__}: {line}"
        names[name] += 1
        if names[name] > 1:
          name += f" #{names[name]}"
        found.append(Mutant(name, old, operator.__name__, file, changed))
  return found


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
  """All nodes that may change, each with the function it is in."""
  if isinstance(node, ast.FunctionDef):
    function = f"{function}.{node.name}".lstrip(".")
    children = [*node.args.kw_defaults, *node.args.defaults, *node.body]
  elif isinstance(
    node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom
  ):
    return
  elif not function and isinstance(node, ast.BinOp):
    return  # A union of types.
  elif isinstance(node, ast.AnnAssign):
    children = [node.value]
  elif isinstance(node, ast.ClassDef):
    children = node.body
  else:
    yield function, node
    children = ast.iter_child_nodes(node)
  for child in children:
    if child:
      yield from _nodes(child, function)


def _replaced(
  data: bytes, starts: list[int], node: ast.AST, new: ast.AST
) -> str:
  """The source with the new node where the old one is.

  Args:
    data: the source; columns of a syntax tree count bytes.
    starts: where its lines start.
  """
  text = ast.unparse(new)
  if isinstance(new, ast.expr):
    text = f"({text})"
  elif isinstance(new, ast.stmt):
    text = text.replace("\n", "\n" + " " * node.col_offset)
  start = starts[node.lineno - 1] + node.col_offset
  end = starts[node.end_lineno - 1] + node.end_col_offset
  return (data[:start] + text.encode() + data[end:]).decode()
