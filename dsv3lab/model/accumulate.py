"""Sums as FP8 tensor cores form them: few bits, aligned to the largest number (DeepSeek-V3 report 3.3.2 and 3.5.2).

H800 tensor cores multiply 32 pairs of FP8 numbers, shift the exact products right until all have the exponent of the
largest, keep the highest 14 bits of each, cut off the rest, and add; the register that the sums run up in has 14 bits
too. What is small beside the running sum is lost, so the error grows with the length of the sum. The report's remedy is
to add the register into float32 every 128 products and to start it again at zero ("promotion").

This emulates that addition bit by bit, to measure it. Trainings do not use it: their sums run in float32 (FP8.md).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsv3lab.model.fp8 import TILE

BITS, WIDTH = 14, 32
"""Bits of each addend and of the register; products that are added at once (report 3.5.2)."""
EXACT_BITS = 24
"""Bits up to which float32 holds every integer."""


def accumulated_product(
    x: Float[Array, "rows inner"],
    w: Float[Array, "inner outer"],
    *,
    bits: int | Int[Array, ""] = BITS,
    width: int = WIDTH,
    promote: int | None = TILE,
) -> Float[Array, "rows outer"]:
    """`x @ w` with each sum formed `width` products at a time in `bits` bits.

    A group's addends are its products and the register. The largest one's leading bit counts as the first of `bits`;
    what lies below the last is cut off, toward zero, from each addend before the sum and from the sum after it.

    Args:
        x: numbers of a small format, in float32: the product of two must fit float32 (E4M3, E5M2, E5M6, bfloat16).
        w: the same.
        bits: of the addends and of the register, the leading one included. A traced number, for one program of many
            widths, is not checked.
        width: products that are added at once.
        promote: products after which the register is added into float32 and starts again at zero; a multiple of
            `width`. None: never before the end.

    Raises:
        ValueError: if the sum of a group might not be exact here, or `promote` is no multiple of `width`.
    """
    if isinstance(bits, int) and (width + 1) * 2**bits > 2**EXACT_BITS:
        raise ValueError(f"bits: {width + 1} addends of {bits} bits do not add up exactly in float32; choose fewer")
    inner = x.shape[1]
    promote = inner + -inner % width if promote is None else promote
    if promote % width:
        raise ValueError(f"promote: {promote} is not a multiple of width {width}")
    padding = -inner % promote  # zeros neither move the largest exponent nor the sum
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, padding)))
    w = jnp.pad(w.astype(jnp.float32), ((0, padding), (0, 0)))
    groups = (-1, promote // width, width)
    left, right = x.T.reshape(*groups, x.shape[0]), w.reshape(*groups, w.shape[1])
    start = jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)

    def add(register: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        products = group[0][:, :, None] * group[1][:, None, :]
        return _add(register, products, bits=bits), None

    def interval(total: Array, stretch: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jax.lax.scan(add, start, stretch)[0], None

    return jax.lax.scan(interval, start, (left, right))[0]


def _add(register: Array, products: Array, *, bits: int | Array) -> Array:
    """The register after one group of products [width, rows, outer] was added."""
    largest = jnp.maximum(jnp.abs(register), jnp.max(jnp.abs(products), axis=0))
    exponent = jnp.frexp(largest)[1] - bits  # of the last bit that is kept
    unit = jnp.ldexp(jnp.float32(1.0), -exponent)
    count = jnp.trunc(register * unit) + jnp.sum(jnp.trunc(products * unit), axis=0)  # integers below 2^24: exact
    spare = jnp.maximum(jnp.frexp(count)[1] - bits, 0)  # bits by which the sum has outgrown the register
    kept = jnp.ldexp(jnp.trunc(jnp.ldexp(count, -spare)), spare)
    return jnp.ldexp(kept, exponent)
