"""Sizes chosen from the data, against every other choice."""

import itertools

import numpy as np
import pytest

from mmrl.inspection import Finding, buckets


def found(*sizes):
  return [Finding(i, str(i), *size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
  ("sizes", "lengths", "patches", "padding"),
  [
    # All alike: one size.
    ([(40, 64)] * 5, (40,), (64,), 0.0),
    # Rounded up to 8 and 16.
    ([(33, 50)] * 5, (40,), (64,), 0.0),
    # A text: no patches, but a size for them.
    ([(16, 0)] * 3, (16,), (16,), 0.0),
    # 8 and 4 + 12 (unit 4): one size adds 8 * 8 to 5 * 16 + 8.
    ([(8, 32), (16, 32), (16, 32)], (16,), (32,), 8 / 64),
    # One long: 3 * 24 added to 24 + 8 * 3 + 4 * 4 would be too much.
    ([(8, 16)] * 3 + [(32, 16)], (8, 32), (16,), 0.0),
    # Both differ: cutting the patches alone leaves 16 of 130.
    ([(8, 16), (24, 400)], (24,), (16, 400), 16 / 136),
  ],
)
def test_by_hand(monkeypatch, sizes, lengths, patches, padding):
  monkeypatch.setattr(buckets, "SMALL", 0)
  chosen = buckets.choose(found(*sizes), 4)
  assert (chosen.lengths, chosen.patches) == (lengths, patches)
  assert chosen.padding == pytest.approx(padding)


def padded(needs, sizes):
  return sum(min(b for b in sizes if b >= n) - n for n in needs)


@pytest.mark.parametrize("seed", range(12))
def test_no_fewer_pairs_pad_as_little(monkeypatch, seed):
  """Of all subsets of the sizes that occur."""
  monkeypatch.setattr(buckets, "SMALL", 0)
  rng = np.random.default_rng(seed)
  # Few values, some of them far apart.
  tokens = 8 * rng.choice([1, 2, 5, 9, 30, 60], 20, p=rng.dirichlet([0.4] * 6))
  cuts = 16 * rng.choice([1, 4, 9, 40, 80], 20, p=rng.dirichlet([0.4] * 5))
  work = tokens.sum() + cuts.sum() / 4

  def choices(needs):
    values = sorted({*needs.tolist()})
    return [
      (*chosen, values[-1])
      for count in range(len(values))
      for chosen in itertools.combinations(values[:-1], count)
    ]

  costs = {
    (s, m): (padded(tokens, s) + padded(cuts, m) / 4) / work
    for s, m in itertools.product(choices(tokens), choices(cuts))
  }
  fitting = {
    (len(s) * len(m), cost) for (s, m), cost in costs.items() if cost <= 0.25
  }
  sizes = zip(tokens.tolist(), cuts.tolist(), strict=True)
  chosen = buckets.choose(found(*sizes), 4)
  count, cost = min(fitting)
  assert len(chosen.lengths) * len(chosen.patches) == count
  assert chosen.padding == pytest.approx(cost)
  assert costs[chosen.lengths, chosen.patches] == pytest.approx(cost)


@pytest.mark.parametrize("count", [buckets.SMALL, buckets.SMALL + 1])
def test_small_data_and_many_processes_have_one(count):
  sizes = found(*[(8, 16)] * (count - 1), (800, 16))
  small = count == buckets.SMALL
  assert len(buckets.choose(sizes, 4).lengths) == 1 + (not small)
  assert buckets.choose(sizes, 4, one=True).lengths == (800,)


def test_what_is_given_stays(monkeypatch):
  monkeypatch.setattr(buckets, "SMALL", 0)
  sizes = found((8, 16), (80, 16))
  assert buckets.choose(sizes, 4, lengths=(90, 20)).lengths == (20, 90)
  assert buckets.choose(sizes, 4, patches=(64,)).lengths == (8, 80)


def test_what_is_broken_has_no_size():
  sizes = [*found((8, 16)), Finding(1, "b", fault="broken")]
  assert buckets.choose(sizes, 4).lengths == (8,)


def test_large_sizes_are_blocks():
  """Of 128 from 1,024 tokens and 2,048 patches on."""
  chosen = buckets.choose(found((1025, 2049)), 4)
  assert chosen.lengths == (1152,) and chosen.patches == (2176,)
  chosen = buckets.choose(found((1017, 2033)), 4)
  assert chosen.lengths == (1024,) and chosen.patches == (2048,)
