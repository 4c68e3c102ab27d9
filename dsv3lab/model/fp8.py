"""Block-scaled FP8: formats, tiles, scales, and products of quantised tensors (DeepSeek-V3 report 3.3.1 to 3.3.3).

A tensor goes into a product as numbers of eight bits with one float32 scale for each tile: 1x128 along the axis that is
summed over for activations and gradients, 128x128 for weights. Everything is emulated: the numbers are cast to the
format and back, and sums run in float32, where the product of two E4M3 numbers is exact. So it runs on any device.
FP8.md beside this file says what is quantised along which axis, and what is not.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 128
"""Elements along one side of a tile, and products between two promotions to float32 (report 3.3.2)."""
SMALLEST_AMAX = 1e-4
"""A tile whose largest element is below keeps this one's scale: the released kernel's guard against a scale of zero."""

Format = Literal["e4m3", "e5m2", "e5m6"]
LARGEST: dict[Format, float] = {"e4m3": 448.0, "e5m2": 57344.0, "e5m6": 65024.0}
"""Largest finite number. E5M6 is only named in the report (3.3.3): read here as IEEE half precision with 6 bits left."""


class Quantised(NamedTuple):
    """A tensor as numbers of a small format and scales: `dequantise` multiplies them."""

    values: Array
    """In the format's dtype (E5M6 in float16, which holds it), of the tensor's shape."""
    scales: Float[Array, "..."]
    """One for each tile: of the tensor's rank, each tiled axis as long as it has tiles."""


def cast(x: Float[Array, "..."], format: Format = "e4m3") -> Array:
    """The nearest numbers of `format`, ties to even. Clipped first: JAX casts what is above 448 to NaN in E4M3."""
    clipped = jnp.clip(x.astype(jnp.float32), -LARGEST[format], LARGEST[format])
    if format == "e5m6":
        return jax.lax.reduce_precision(clipped, exponent_bits=5, mantissa_bits=6).astype(jnp.float16)
    return clipped.astype(jnp.float8_e4m3fn if format == "e4m3" else jnp.float8_e5m2)


def scale_of(amax: Float[Array, "..."], *, format: Format = "e4m3", power_of_two: bool = False) -> Float[Array, "..."]:
    """The scale that brings `amax` to the format's largest number, rounded up to a power of two if asked for.

    A power of two only moves the exponent, so that quantising once more along another axis rounds nothing again.
    """
    # Behind a barrier, or XLA multiplies with the reciprocal instead: half of the scales would be off by one bit.
    largest = jax.lax.optimization_barrier(jnp.full_like(amax, LARGEST[format]))
    scale = jnp.maximum(amax, SMALLEST_AMAX) / largest
    if not power_of_two:
        return scale
    mantissa, exponent = jnp.frexp(scale)  # scale = mantissa 2^exponent with a mantissa in [0.5, 1)
    return jnp.ldexp(1.0, exponent - (mantissa == 0.5))


def quantise(
    x: Float[Array, "..."], tile: tuple[int, ...], *, format: Format = "e4m3", power_of_two: bool = False
) -> Quantised:
    """`x` with one scale for each tile of the last axes; the last tile of an axis may be smaller.

    Args:
        x: the tensor.
        tile: size of a tile along each of the last `len(tile)` axes, e.g. (1, 128) for the rows of an activation,
            (128, 1) for its columns, (128, 128) for a weight.
        format: of the values.
        power_of_two: whether scales are powers of two.
    """
    x = x.astype(jnp.float32)
    amax = jnp.abs(x)
    for axis, size in zip(range(-len(tile), 0), tile, strict=True):
        amax = _largest(amax, axis=axis, size=size)
    scales = scale_of(amax, format=format, power_of_two=power_of_two)
    return Quantised(cast(x / spread(scales, x.shape, tile), format), scales)


def dequantise(quantised: Quantised, tile: tuple[int, ...]) -> Float[Array, "..."]:
    """Values times scales, float32."""
    values = quantised.values.astype(jnp.float32)
    return values * spread(quantised.scales, values.shape, tile)


def spread(scales: Float[Array, "..."], shape: tuple[int, ...], tile: tuple[int, ...]) -> Float[Array, "..."]:
    """The scale of each element of a tensor of `shape`."""
    for axis, size in zip(range(-len(tile), 0), tile, strict=True):
        if size > 1:
            scales = jnp.repeat(scales, size, axis=axis, total_repeat_length=scales.shape[axis] * size)
            scales = jax.lax.slice_in_dim(scales, 0, shape[axis], axis=axis % scales.ndim)
    return scales


def _largest(x: Array, *, axis: int, size: int) -> Array:
    """The largest element of each stretch of `size` along `axis`."""
    if size == 1:
        return x
    axis = axis % x.ndim
    length = x.shape[axis]
    padded = jnp.pad(x, [(0, -length % size if i == axis else 0) for i in range(x.ndim)])
    return jnp.max(padded.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis=axis + 1)


def product(
    x: Quantised,
    w: Quantised,
    *,
    implementation: Literal["tiled", "dequantised"] = "dequantised",
) -> Float[Array, "rows outer"]:
    """`x @ w` of [rows, inner] in tiles of 1x128 and [inner, outer] in tiles of 128x128, summed in float32.

    Args:
        x: rows of an activation or a gradient.
        w: a weight.
        implementation: "tiled" is the kernel's order: 128 products are summed, then their sum is multiplied with both
            scales and added in float32 (report 3.3.2, Fig. 7b). "dequantised" multiplies the values with their
            scales first: the same but for float32 rounding, and faster.
    """
    rows, inner = x.values.shape
    if implementation == "dequantised":
        return dequantise(x, (1, TILE)) @ dequantise(w, (TILE, TILE))
    outer = w.values.shape[1]
    total = jnp.zeros((rows, outer), jnp.float32)
    for number, first in enumerate(range(0, inner, TILE)):
        left = x.values[:, first : first + TILE].astype(jnp.float32)
        right = w.values[first : first + TILE].astype(jnp.float32)
        scales = x.scales[:, number, None] * spread(w.scales[number, None], (1, outer), (1, TILE))
        total = total + (left @ right) * scales
    return total
