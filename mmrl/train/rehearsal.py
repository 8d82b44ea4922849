"""Tracing of methods on shapes alone: options out of range fail before a run.

A function checks its options when it is traced. Here it is traced while the run
is built, instead of after its first rollout.
"""

from collections.abc import Mapping
import dataclasses
import inspect
import typing
from typing import Any

import jax
from jaxtyping import AbstractArray

from mmrl import build, errors
from mmrl.types import Attention, Logits, Scores

_TYPES = ("float32", "bool", "int32")
_STATIC = {"pattern": "vd", "banned": (), "temperature": 1.0, "row": ""}


def rehearse(
  bound: build.Bound, where: str, sizes: Mapping[str, int], **known
) -> Any:
  """Traces a slot's function on arrays of its annotated shapes.

  Of several annotated shapes it uses the first. A function with other required
  arguments, such as parameters, isn't traced. Other arguments whose default is
  None are passed as None.

  Args:
    bound: the function with its options.
    where: the config field, for errors.
    sizes: of P, G and R; other dimensions are 2.
    **known: data that aren't arrays.

  Returns:
    Shapes of what it returns; None if it isn't traced.

  Raises:
    UserError: the function's own error, prefixed with the field.
  """
  parameters = inspect.signature(bound.function).parameters
  shapes = {
    name: _stand_in(parameters[name].annotation, sizes)
    for name in bound.needs
    if name not in known
  }
  missing = {name for name, shape in shapes.items() if shape is None}
  if any(parameters[name].default is not None for name in missing):
    return None
  known = dict.fromkeys(missing) | known
  shapes = {k: v for k, v in shapes.items() if k not in missing}
  with errors.of_field(where):
    return jax.eval_shape(lambda arrays: bound(arrays | known), shapes)


def _stand_in(annotation: Any, sizes: Mapping[str, int]) -> Any:
  """Returns shapes for an annotation; None if it isn't one of arrays."""
  if annotation in (Attention, Logits, Scores):
    fields = dataclasses.fields(annotation)
    parts = {x.name: _stand_in(x.type, sizes) for x in fields}
    static = {x.name for x in fields} & set(_STATIC)
    return annotation(**parts | {name: _STATIC[name] for name in static})
  for one in typing.get_args(annotation) or (annotation,):
    if one in (Attention, Logits):
      return _stand_in(one, sizes)
    if isinstance(one, type) and issubclass(one, AbstractArray):
      if "prng_key" in one.dtypes:
        return jax.eval_shape(lambda: jax.random.key(0))
      letters = one.dim_str.replace("*batch", "P G R").split()
      dtype = next(name for name in _TYPES if name in one.dtypes)
      shape = [sizes.get(letter, 2) for letter in letters]
      return jax.ShapeDtypeStruct(shape, dtype)
  return None
