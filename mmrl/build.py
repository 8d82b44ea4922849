"""Specs to functions. A mistake in a config fails here, before anything runs.

A spec such as `{"name": "clipped_ratio", "clip_high": 0.28}` names a function
of a slot's package. Its positional parameters are data, found by name; one
with a default may be missing. Its keyword-only parameters are
hyper-parameters, given by the spec. Nothing is registered: a function is found
by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import types
import typing
from typing import Any

from mmrl import errors
from mmrl.errors import UserError

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
    data = {name: context[name] for name in self.needs}
    with errors.of_field(self.where):
      return self.function(**data, **self.options)


def lookup(package: types.ModuleType, spec: Mapping, where: str) -> Callable:
  """Looks up the function or class of `package` that a spec names.

  Args:
    package: a slot's package, or a library such as optax.
    spec: with "name".
    where: the config field, for errors.

  Raises:
    UserError: listing what there is.
  """
  valid = getattr(package, "__all__", None) or [
    name for name in dir(package) if not name.startswith("_")
  ]
  name: Any = spec.get("name")
  if name not in valid or not callable(getattr(package, name)):
    near = ", ".join(valid) if len(valid) < 20 else f"see {package.__name__}"
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
    raise UserError(
      f"{where}: {function.__name__} has no option {', '.join(unknown)}; valid"
      f" options: {', '.join(valid) or 'none'}"
    )
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
  signature = inspect.signature(function)
  parameters = [p for p in signature.parameters.values() if p.name not in fixed]
  _check_options(function, options, parameters, where)
  with errors.of_field(where):
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
    UserError: if the name or an option is unknown.
  """
  function = lookup(package, spec, where)
  options = {k: v for k, v in spec.items() if k != "name"}
  parameters = inspect.signature(function).parameters.values()
  keywords = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
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
  parameters = inspect.signature(function).parameters.values()
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
  """Returns the fields that a probe adds, from its return annotation."""
  return inspect.signature(probe).return_annotation._fields
