"""Sums in few bits: against rational numbers, bit for bit, and what promotion does to their error."""

import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.model import accumulated_product, fp8, reading_fp8

RNG = np.random.default_rng(0)


def e4m3(*shape: int) -> np.ndarray:
    """E4M3 numbers of very different size, with rows that begin with zeros."""
    x = RNG.normal(size=shape) * np.exp(2 * RNG.normal(size=shape))
    x[0, : min(shape[1], 40)] = 0
    return np.asarray(fp8.cast(jnp.asarray(x)), np.float32)


@pytest.mark.parametrize(
    ("bits", "width", "promote"), [(14, 32, 128), (14, 32, None), (6, 16, 32), (6, 16, None), (3, 4, 4), (10, 1, None)]
)
def test_sums_are_those_of_rational_numbers_bit_for_bit(bits: int, width: int, promote: int | None) -> None:
    x, w = e4m3(3, 200), e4m3(200, 4)
    options = {"bits": bits, "width": width, "promote": promote}
    found = np.asarray(accumulated_product(jnp.asarray(x), jnp.asarray(w), **options))
    np.testing.assert_array_equal(found, reading_fp8.accumulated(x, w, **options))
    assert np.any(found != x @ w)


def test_a_small_product_is_lost_beside_a_large_register_unless_it_is_promoted() -> None:
    x = jnp.asarray([[256.0] * 32 + [2.0**-9] * 32])
    ones = jnp.ones((64, 1))
    assert float(accumulated_product(x, ones, promote=None)[0, 0]) == 8192.0
    assert float(accumulated_product(x, ones, promote=32)[0, 0]) == 8192.0 + 2.0**-4


def test_addends_are_cut_off_toward_zero() -> None:
    x = jnp.asarray([[4.0, 1.75, -1.75]])
    # Of two bits the first is worth 4 and the second 2: both small addends vanish.
    assert float(accumulated_product(x, jnp.ones((3, 1)), bits=2, width=3, promote=None)[0, 0]) == 4.0
    # One by one with three bits: 4 + 1, then 5 - 1.
    assert float(accumulated_product(x, jnp.ones((3, 1)), bits=3, width=1, promote=None)[0, 0]) == 4.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bits": 20}, "bits: 33 addends of 20 bits"), ({"promote": 100}, "promote: 100 is not a multiple of width 32")],
)
def test_what_cannot_be_emulated_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accumulated_product(jnp.ones((1, 64)), jnp.ones((64, 1)), **options)
