"""Specs to functions. A mistake in a config fails here, before anything runs.

A spec such as `{"name": "clipped_ratio", "clip_high": 0.28}` names a function
of a slot's package, or as `path/to/mine.py:function` one of a file, whose path
is relative to the current directory. Its positional parameters are data, found
by name; one with a default may be missing. Its keyword-only parameters are
hyper-parameters, given by the spec. Nothing is registered: a function is found
by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import inspect
import types
import typing
from typing import Any

from mmrl import errors, python_files
from mmrl.errors import UserError

# Keys of a spec that say how its value counts; they never reach a function.
_TAKEN = {
  "mmrl.losses": ("weight", "reduce", "placebo"),
  "mmrl.rewards": ("weight", "times", "start", "placebo"),
}
_POSITIONAL = (
  inspect.Parameter.POSITIONAL_ONLY,
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A slot's function with its hyper-parameters.

  Attributes:
    name: as in the spec.
    function: the function.
    needs: names of its data arguments, those of optional data that is there
      among them.
    options: its hyper-parameters.
    where: the config field, which begins the errors that the function raises.
  """

  name: str
  function: Callable
  needs: tuple[str, ...]
  options: Mapping[str, Any]
  where: str

  def __call__(self, context: Mapping[str, Any]):
    """Calls it; an exception of a function from a file is one line."""
    file = file_of(self.name)
    guard = python_files.mistakes(file) if file else contextlib.nullcontext()
    with errors.of_field(self.where), guard:
      return self.call(context)

  def array(self, context: Mapping[str, Any], *ranks: int) -> Any:
    """Calls it, and checks that it returns an array of the batch's sizes.

    Args:
      context: with `mask` [P, G, R].
      *ranks: that it may have: 1 of [P], 2 of [P, G], 3 of [P, G, R].

    Raises:
      UserError: if it has another shape.
    """
    found = self(context)
    self.check_array(found, context, *ranks)
    return found

  def check_array(
    self, found: Any, context: Mapping[str, Any], *ranks: int
  ) -> None:
    """Checks what it has returned: see `array`."""
    sizes, shape = context["mask"].shape, getattr(found, "shape", None)
    if shape not in [sizes[:rank] for rank in ranks]:
      wanted = " or ".join(f"[{', '.join('PGR'[:rank])}]" for rank in ranks)
      raise UserError(
        f"{self.where}: expected {self.name} to return an array {wanted}, with"
        f" [P, G, R] = {list(sizes)}, found"
        f" {type(found).__name__ if shape is None else list(shape)}"
      )

  def fields(self, context: Mapping[str, Any]) -> dict[str, Any]:
    """Calls a probe, and returns the fields that it adds.

    Raises:
      UserError: if it returns no `NamedTuple`.
    """
    found = self(context)
    if not hasattr(found, "_asdict"):
      raise UserError(
        f"{self.where}: expected {self.name} to return the NamedTuple that it"
        f" is annotated with, found {type(found).__name__}"
      )
    return found._asdict()

  def call(self, context: Mapping[str, Any]):
    """Calls it; exceptions are its own."""
    data = {name: context[name] for name in self.needs}
    with errors.of_field(self.where):
      return self.function(**data, **self.options)


def file_of(name: Any) -> str | None:
  """Returns the file of a spec's name if it is one such as mine.py:function."""
  path, colon, _ = str(name).rpartition(":")
  return path if colon and path.endswith(".py") else None


def signature(function: Callable) -> inspect.Signature:
  """Returns a signature, with annotations that are quoted as what they are."""
  try:
    return inspect.signature(function, eval_str=True)
  except (NameError, SyntaxError, TypeError, AttributeError):
    # Names that are only there for a type checker say nothing here.
    return inspect.signature(function)


def _in_file(path: str, name: str, where: str) -> Callable:
  """Looks up a function or class of a user's file."""
  with errors.of_field(where):
    module = python_files.imported(path, "a file of Python with functions")
    found = python_files.function(module, name.rpartition(":")[2], path)
    try:
      parameters = signature(found).parameters.values()
    except ValueError as error:
      raise UserError(
        f"expected {name} to have a signature, found none; write it in Python"
      ) from error
    for one in parameters:
      if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
        raise UserError(
          f"expected {name} to name its data, and behind a `*` its options,"
          f" found {one}"
        )
  return found


def lookup(package: types.ModuleType, spec: Mapping, where: str) -> Callable:
  """Looks up the function or class that a spec names.

  Args:
    package: a slot's package, or a library such as optax.
    spec: with "name", of `package` or as FILE.py:FUNCTION.
    where: the config field, for errors.

  Raises:
    UserError: listing what there is.
  """
  if path := file_of(spec.get("name")):
    return _in_file(path, spec["name"], where)
  valid = getattr(package, "__all__", None) or [
    name for name in dir(package) if not name.startswith("_")
  ]
  name: Any = spec.get("name")
  if name not in valid or not callable(getattr(package, name)):
    near = ", ".join(valid)
    if len(valid) >= 60:
      near = f"see {package.__name__}{errors.nearest(name, valid)}"
    if str(name).endswith(".py"):
      near = f"of a file it is {name}:FUNCTION"
    raise UserError(
      f"{where}: {package.__name__} has no {name!r}; valid names: {near}"
    )
  return getattr(package, name)


def _check_options(
  function: Callable,
  options: Mapping,
  parameters: Sequence[inspect.Parameter],
  where: str,
):
  valid = [p.name for p in parameters]
  unknown = sorted(set(options) - set(valid))
  if unknown:
    data = [p.name for p in _data(function) if p.name in unknown]
    hint = f"; {data[0]} stands before the `*`, so it is data" if data else ""
    raise UserError(
      f"{where}: {function.__name__} has no option {', '.join(unknown)}; valid"
      f" options: {', '.join(valid) or 'none'}{hint}"
    )
  for name, value in options.items():
    # It passes every `if x < 0`.
    if value != value:
      raise UserError(f"{where}.{name}: expected a number, found {value!r}")
  for p in parameters:
    allowed = typing.get_args(p.annotation)
    if typing.get_origin(p.annotation) is not typing.Literal:
      continue
    if p.name in options and options[p.name] not in allowed:
      raise UserError(
        f"{where}.{p.name}: expected one of {', '.join(map(repr, allowed))},"
        f" found {options[p.name]!r}"
      )
  missing = [
    p.name for p in parameters if p.default is p.empty and p.name not in options
  ]
  if missing:
    raise UserError(f"{where}: {function.__name__} needs {', '.join(missing)}")


def construct(
  package: types.ModuleType, spec: Mapping, where: str, **fixed
) -> Any:
  """Calls what a spec names, with the spec's options as keywords.

  Args:
    package: where to look it up.
    spec: "name" and options.
    where: the config field, for errors.
    **fixed: arguments that the spec can't set.
  """
  function = lookup(package, spec, where)
  options = {k: v for k, v in spec.items() if k != "name"}
  known = signature(function).parameters
  lacking = [name for name in fixed if name not in known]
  if lacking and file_of(spec["name"]):
    raise UserError(
      f"{where}: expected {spec['name']} to take {', '.join(lacking)}, which a"
      f" run gives it, found ({', '.join(known)})"
    )
  parameters = [p for p in known.values() if p.name not in fixed]
  _check_options(function, options, parameters, where)
  file = file_of(spec["name"])
  guard = python_files.mistakes(file) if file else contextlib.nullcontext()
  with errors.of_field(where), guard:
    return function(**options, **fixed)


def resolve(
  package: types.ModuleType, spec: Mapping, where: str
) -> tuple[Callable, dict[str, Any]]:
  """Looks up a slot's function and checks the options of its spec.

  A function that carries a `check` has that called with the options, too.

  Args:
    package: the slot's package.
    spec: "name" and hyper-parameters.
    where: the config field, for errors.

  Returns:
    (function, options).

  Raises:
    UserError: if the name or an option is unknown, or the function has an
      option that the config can't set.
  """
  function = lookup(package, spec, where)
  options = {k: v for k, v in spec.items() if k != "name"}
  parameters = signature(function).parameters.values()
  keywords = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
  taken = _TAKEN.get(package.__name__, ())
  lost = [p.name for p in keywords if p.name in taken]
  if lost:
    raise UserError(
      f"{where}: expected options of {spec['name']} by other names than"
      f" {', '.join(taken)}, which say how it counts, found {', '.join(lost)};"
      " rename it in the function"
    )
  _check_options(function, options, keywords, where)
  check = getattr(function, "check", None)
  if check is not None:
    with errors.of_field(where):
      check(**options)
  return function, options


def required(function: Callable) -> list[str]:
  """Returns the names of the data that a function can't be called without."""
  return [p.name for p in _data(function) if p.default is p.empty]


def _data(function: Callable) -> list[inspect.Parameter]:
  parameters = signature(function).parameters.values()
  return [p for p in parameters if p.kind in _POSITIONAL]


def bind(
  package: types.ModuleType,
  spec: Mapping,
  where: str,
  *,
  provided: Iterable[str],
  remedies: Mapping[str, str] = types.MappingProxyType({}),
) -> Bound:
  """Binds a slot's function, checked against the data that a run provides.

  Args:
    package: the slot's package.
    spec: "name" and hyper-parameters.
    where: the config field, for errors.
    provided: names of the data that will be there.
    remedies: for a name that could be there, what to add to the config.

  Raises:
    UserError: if the name or an option is unknown, or data is missing.
  """
  function, options = resolve(package, spec, where)
  return bind_function(
    spec["name"], function, options, where, provided=provided, remedies=remedies
  )


def bind_function(
  name: str,
  function: Callable,
  options: Mapping[str, Any],
  where: str,
  *,
  provided: Iterable[str],
  remedies: Mapping[str, str] = types.MappingProxyType({}),
) -> Bound:
  """Binds a function that is resolved already; see `bind`."""
  provided = set(provided)
  needs = tuple(
    p.name
    for p in _data(function)
    if p.name in provided or p.default is p.empty
  )
  for need in needs:
    if need not in provided:
      remedy = remedies.get(need, f"provided are {', '.join(sorted(provided))}")
      raise UserError(
        f"{where}: {name} needs {need}, which this run doesn't have; {remedy}"
      )
  return Bound(name, function, needs, options, where)


def provides(probe: Callable) -> tuple[str, ...]:
  """Returns the fields that a probe adds, from its return annotation.

  Raises:
    UserError: if it isn't annotated with a `NamedTuple`.
  """
  fields = getattr(signature(probe).return_annotation, "_fields", None)
  if fields is None:
    raise UserError(
      f"expected probe {probe.__name__} to be annotated with the NamedTuple"
      " that it returns, whose fields it adds, found none"
    )
  return fields
