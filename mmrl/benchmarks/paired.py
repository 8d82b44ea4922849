"""Two models on the same items: is one of them better?"""

import math


def mcnemar(first: int, second: int) -> float:
  """Computes the p-value of McNemar's exact test, two-sided.

      p = min(1, 2 P(X <= min(b, c))),    X ~ Binomial(b + c, 1/2)

  Args:
    first: b, items that only the first model gets right.
    second: c, items that only the second does.

  Returns:
    In (0, 1]; 1 if there are none of either.

  Raises:
    ValueError: if a number is negative.

  Reference: McNemar 1947; Perception-R1, arXiv 2506.07218, section 3, which
  counts pictures that are read right before or after training only.
  """
  if min(first, second) < 0:
    raise ValueError(f"expected counts, found {first} and {second}")
  total = first + second
  tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
  return min(1.0, 2 * tail / 2**total)
