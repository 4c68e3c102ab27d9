"""FP8: casts bit for bit, scales, and the three products against the recipe read into NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dsv3lab.model import fp8, linear, reading_fp8
from tests.tolerances import FP8_PRODUCT_RTOL

RNG = np.random.default_rng(0)
PLACES = ("ffn.down", "attention.out", "experts.gate_up", "experts.down")


def every_kind_of_float(count: int) -> np.ndarray:
    """Random bit patterns: all exponents, subnormals, both signs; finite."""
    x = RNG.integers(0, 2**32, size=count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


def matrix(*shape: int) -> np.ndarray:
    """Normal values with rows and columns of very different size, as outliers make them."""
    x = (
        RNG.normal(size=shape)
        * np.exp(RNG.normal(size=(*shape[:-2], shape[-2], 1)))
        * np.exp(RNG.normal(size=shape[-1]))
    )
    return x.astype(np.float32)


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_casts_are_those_of_ml_dtypes_bit_for_bit(name: fp8.Format, dtype: type) -> None:
    x = np.concatenate([every_kind_of_float(200_000), np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)])
    x = x[np.isfinite(x)]
    largest = fp8.LARGEST[name]
    clipped = np.clip(x, -largest, largest).astype(dtype)
    np.testing.assert_array_equal(np.asarray(fp8.cast(jnp.asarray(x), name)).view(np.uint8), clipped.view(np.uint8))
    assert np.isfinite(np.asarray(fp8.cast(jnp.asarray([1e9, -1e9]), name), np.float32)).all()


def test_e5m6_rounds_to_six_bits_and_fits_half_precision() -> None:
    x = np.concatenate([every_kind_of_float(100_000), RNG.normal(size=100_000).astype(np.float32)])
    got = np.asarray(fp8.cast(jnp.asarray(x), "e5m6"))
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got.astype(np.float64), reading_fp8.e5m6(x))


def test_scales_bring_each_tile_to_the_largest_number() -> None:
    x = matrix(200, 300)
    rows, columns = fp8.quantise(jnp.asarray(x), (1, 128)), fp8.quantise(jnp.asarray(x), (128, 1))
    assert rows.scales.shape == (200, 3) and columns.scales.shape == (2, 300)
    np.testing.assert_array_equal(rows.scales[:, 2], np.abs(x[:, 256:]).max(axis=1) / np.float32(448))
    np.testing.assert_array_equal(columns.scales[1], np.abs(x[128:]).max(axis=0) / np.float32(448))
    assert fp8.quantise(jnp.zeros((4, 576)), (128, 128)).scales.shape == (1, 5)  # kv_a_proj's 576 rows, released scales


@pytest.mark.parametrize("exponent", [-20, -3, 0, 7])
def test_powers_of_two_are_rounded_up_and_kept_where_they_are_one(exponent: int) -> None:
    amax = jnp.asarray([1.0, 1.001, 1.999, 2.0]) * 2.0**exponent * 448
    np.testing.assert_array_equal(fp8.scale_of(amax, power_of_two=True), np.array([1.0, 2.0, 2.0, 2.0]) * 2.0**exponent)


def test_a_tile_of_zeros_has_a_scale() -> None:
    assert float(fp8.scale_of(jnp.asarray(0.0))) == np.float32(1e-4) / np.float32(448)


def test_a_power_of_two_is_not_rounded_again_along_the_other_axis() -> None:
    x = jnp.asarray(RNG.normal(size=(256, 256)), jnp.float32)

    def changed(power_of_two: bool) -> float:
        once = fp8.dequantise(fp8.quantise(x, (1, 128), power_of_two=power_of_two), (1, 128))
        second = fp8.quantise(once, (128, 1), power_of_two=power_of_two)
        normal = jnp.abs(once) >= 2.0**-6 * fp8.spread(second.scales, x.shape, (128, 1))  # the rest loses bits anyhow
        return float(jnp.sum((once != fp8.dequantise(second, (128, 1))) & normal) / jnp.sum(normal))

    assert changed(power_of_two=True) == 0
    assert changed(power_of_two=False) > 0.5


def test_scaling_the_sum_of_each_tile_is_scaling_its_values() -> None:
    x, w = fp8.quantise(jnp.asarray(matrix(40, 300)), (1, 128)), fp8.quantise(jnp.asarray(matrix(300, 200)), (128, 128))
    close(fp8.product(x, w), fp8.product(x, w, implementation="tiled"))


@pytest.mark.parametrize("place", PLACES)
def test_the_three_products_of_a_layer_are_those_of_the_recipe(place: str) -> None:
    x, w, dy = matrix(200, 300), matrix(300, 140), matrix(200, 140)
    y, pull = jax.vjp(lambda x, w: linear.fp8_matmul(x, w, place=place), jnp.asarray(x), jnp.asarray(w))
    for got, wanted in zip((y, *pull(jnp.asarray(dy))), reading_fp8.linear(x, w, dy, place=place), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("place", ("experts.gate_up", "experts.down"))
def test_the_three_products_of_grouped_layers_are_those_of_the_recipe(place: str) -> None:
    sizes = [0, 130, 1, 69, 0]
    x, w, dy = matrix(200, 300), matrix(5, 300, 140), matrix(200, 140)

    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return linear.fp8_grouped_matmul(x, w, jnp.asarray(sizes, jnp.int32), place=place)

    y, pull = jax.vjp(layer, jnp.asarray(x), jnp.asarray(w))
    for got, wanted in zip((y, *pull(jnp.asarray(dy))), reading_fp8.grouped(x, w, dy, sizes, place=place), strict=True):
        close(got, wanted)


def test_what_stays_in_higher_precision_is_the_plain_product() -> None:
    x, w = jnp.asarray(matrix(8, 16)), jnp.asarray(matrix(16, 8))
    for place in sorted(linear.KEPT):
        np.testing.assert_array_equal(linear.fp8_matmul(x, w, place=place), x @ w)
    assert np.any(np.asarray(linear.fp8_matmul(x, w, place="ffn.down")) != np.asarray(x @ w))


def close(got: jax.Array, wanted: np.ndarray | jax.Array) -> None:
    """Equal but for the order of float32 sums, relative to the largest element."""
    wanted = np.asarray(wanted, np.float64)
    assert np.abs(np.asarray(got, np.float64) - wanted).max() <= FP8_PRODUCT_RTOL * np.abs(wanted).max()
