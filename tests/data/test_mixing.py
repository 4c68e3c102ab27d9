import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3lab.config import ConfigError
from dsv3lab.data import make_mixture, shuffled_order

WEIGHTS = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any)


@given(WEIGHTS)
def test_every_prefix_is_within_one_window_of_its_share(weights: list[int]):
    mixture = make_mixture({f"d{i}": weight / 20 for i, weight in enumerate(weights)})
    n = 2 * len(mixture.order) + 3
    domain, _ = mixture.assign(np.arange(n))
    counts = np.cumsum(domain[:, None] == np.arange(len(weights)), axis=0)
    places = np.arange(1, n + 1)
    for i, weight in enumerate(weights):
        share = Fraction(weight, sum(weights))
        # In integers, as |count - n p/q| < 1 is |count q - n p| < q.
        assert (np.abs(counts[:, i] * share.denominator - places * share.numerator) < share.denominator).all()


@given(WEIGHTS, st.integers(0, 300))
def test_running_numbers_count_from_zero_without_gaps(weights: list[int], n: int):
    mixture = make_mixture({f"d{i}": float(weight) for i, weight in enumerate(weights)})
    domain, number = mixture.assign(np.arange(n))
    for i, name in enumerate(mixture.domains):
        assert number[domain == i].tolist() == list(range(mixture.counts(n)[name]))


def test_a_domain_of_weight_zero_never_comes():
    mixture = make_mixture({"a": 0.0, "b": 2.0})
    assert mixture.counts(1000) == {"a": 0, "b": 1000}


def test_weights_without_a_short_period_are_refused():
    with pytest.raises(ConfigError, match="rounder numbers"):
        make_mixture({"a": 0.123456789, "b": 0.5})
    with pytest.raises(ConfigError, match="positive weight"):
        make_mixture({"a": 0.0})


@given(st.integers(1, 2000), st.integers(0, 3), st.integers(0, 3))
def test_an_order_is_a_permutation(n: int, seed: int, epoch: int):
    order = shuffled_order(n, seed=seed, domain="d", epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_orders_differ_by_seed_domain_and_epoch_and_are_spread():
    def order(seed: int = 0, domain: str = "a", epoch: int = 0) -> np.ndarray:
        return shuffled_order(5000, seed=seed, domain=domain, epoch=epoch)

    others = [order(), order(seed=1), order(domain="b"), order(epoch=1)]
    for i, one in enumerate(others):
        for other in others[:i]:
            # Two independent permutations agree in one place on average, and in 10 with probability 1e-7.
            assert (one == other).sum() < 10
    # The first thousand of a shuffled order come from everywhere: their mean is within 5 standard errors of the middle.
    assert abs(order()[:1000].mean() - 2499.5) < 5 * 5000 / np.sqrt(12 * 1000)


def test_the_order_follows_splitmix64_in_plain_integers():
    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    assert mixed(0) == 0xE220A8397B1DCDAF  # first output of the published generator for seed 0
    salt = int.from_bytes(hashlib.sha256(b"7/source/2").digest()[:8], "little")
    expected = sorted(range(100), key=lambda i: mixed((i + salt) % 2**64))
    assert shuffled_order(100, seed=7, domain="source", epoch=2).tolist() == expected
