"""Tests of the mutants themselves; `python -m tests.mutants` runs them."""

import ast
import collections

import pytest

from tests import mutants, mutations

TOY = '''"""Doc of 1 + 1."""

def f(x: Float[Array, "1 + 1"], mask, *, epsilon: float = 1e-6):
  """Adds 1 + 1."""
  if epsilon < 0:
    raise UserError(f"must be {1 + 1}")
  x = jnp.where(mask & ~odd, x, 0.0)
  x /= jnp.sqrt(x.var() + epsilon)
  high = jnp.clip(x, -1.0, 1)
  return jax.lax.stop_gradient(high).sum(axis=1) - jnp.exp(x)
'''
# By operator: what stands where in a line of the toy.
EXPECTED = {
  "sign": ["x.var() - epsilon", "sum(axis=1) + jnp.exp(x)"],
  "term": ["x = x", "sqrt((x.var()))", "sqrt((epsilon))", "high).sum(axis=1))"],
  "edge": ["epsilon <= 0"],
  "constant": [
    *("epsilon: float = (0.0)", "9.999999999999999e-05", "epsilon < (1)"),
    *("(1.0))", "-(2.0), 1)", "-1.0, (0)", "axis=(0)"),
  ],
  "epsilon": ["jnp.sqrt(x.var()) + epsilon"],
  "reduction": ["x.std()", "mean(axis=1)", "(high).sum()"],
  "mask": ["x = (x)", "where((mask), x", "where((~odd), x", "mask & (odd)"],
  "gradient": ["(high).sum(axis=1)"],
  "stop": ["return jax.lax.stop_gradient(jax.lax.stop_gradient(high)"],
  "bound": ["clip(x, None, 1)", "clip(x, -1.0, None)"],
  "function": ["expm1(x)", "- (x)", "x /= (x.var() + epsilon)"],
  "branch": ["if False and epsilon < 0:"],
}


@pytest.mark.parametrize("operator", mutations.OPERATORS)
def test_operator_changes_what_it_says(operator):
  lines = TOY.splitlines()
  found = [
    next(
      new
      for new, old in zip(mutant.source.splitlines(), lines, strict=True)
      if new != old
    )
    for mutant in mutations.mutants("losses/toy.py", TOY)
    if mutant.operator == operator.__name__
  ]
  expected = EXPECTED[operator.__name__]
  assert len(found) == len(expected), found
  for part in expected:
    assert any(part in line for line in found), (part, found)


def test_names_outlive_changes_elsewhere():
  def names(source):
    return [mutant.name for mutant in mutations.mutants("losses/f.py", source)]

  above = "def g(x):\n  return x + 1\n\n\n"
  assert names(above + TOY)[-len(names(TOY)) :] == names(TOY)


def test_gradients_stop_in_losses_alone():
  operators = {m.operator for m in mutations.mutants("advantages/f.py", TOY)}
  assert operators == set(EXPECTED) - {"stop"}


@pytest.fixture(scope="module")
def every():
  return mutants.all_mutants()


def test_every_mutant_is_a_program_of_its_own(every):
  names = collections.Counter(mutant.name for mutant in every)
  assert max(names.values()) == 1
  assert len({mutant.source for mutant in every}) == len(every)
  for mutant in every[::20]:
    ast.parse(mutant.source)


def test_every_operator_and_file_has_mutants(every):
  assert {m.operator for m in every} == {
    o.__name__ for o in mutations.OPERATORS
  }
  assert {m.file for m in every} == set(mutants.FILES)


def test_tests_of_every_file_exist():
  for file in mutants.FILES:
    for test in mutants.tests_of(file):
      assert (mutants.ROOT / test).exists(), f"{file}: no {test}"


def test_accepted_mutants_exist_and_have_a_reason(every):
  accepted = mutants.accepted()
  assert accepted.keys() <= {mutant.name for mutant in every}
  assert all(accepted.values())
