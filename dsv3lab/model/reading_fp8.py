"""The FP8 recipe of the DeepSeek-V3 report (3.3.1 to 3.3.3) read into plain NumPy and ml_dtypes, tile by tile.

Written without looking at `fp8.py`, `linear.py` and `accumulate.py`, which compute the same: what they are compared with
in tests and in the notebook on FP8.
"""

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray


def e4m3(x: Array) -> Array:
    """The nearest E4M3 numbers; 448 is the largest."""
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def e5m6(x: Array) -> Array:
    """The nearest numbers of 1 sign, 5 exponent and 6 fraction bits; what rounds to less than the smallest normal one is 0."""
    mantissa, exponent = np.frexp(np.clip(np.asarray(x, np.float32), -65024, 65024).astype(np.float64))
    rounded = np.ldexp(np.round(mantissa * 128) / 128, exponent)
    return np.where(np.abs(rounded) < 2.0**-14, 0.0 * rounded, rounded)  # keeps the sign of a zero


def scale(amax: float, largest: float, power_of_two: bool) -> np.float32:
    """The tile's scale in float32."""
    wanted = np.float32(max(amax, 1e-4)) / np.float32(largest)
    return np.float32(2.0 ** math.ceil(math.log2(wanted))) if power_of_two else wanted


def tiled(x: Array, rows: int, columns: int, *, special: bool = False, power_of_two: bool = False) -> Array:
    """A matrix as its tiles of rows x columns hold it: E4M3, or E5M6 if `special`."""
    x = np.asarray(x, np.float32)
    out = np.zeros(x.shape)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            part = x[i : i + rows, j : j + columns]
            s = scale(float(np.abs(part).max()), 65024 if special else 448, power_of_two)
            out[i : i + rows, j : j + columns] = (e5m6 if special else e4m3)(part / s) * np.float64(s)
    return out


def linear(x: Any, w: Any, dy: Any, *, place: str) -> tuple[Array, Array, Array]:
    """y = x w, dx = dy w^T and dw = x^T dy of one layer, each product with its factors in tiles along its sum."""
    x, w, dy = (np.asarray(a, np.float32) for a in (x, w, dy))
    special, sent = place == "attention.out", place == "experts.gate_up"
    options = {"special": special, "power_of_two": special or sent}
    back = place == "experts.down"  # the gradient that comes back from the combine
    weight = tiled(w, 128, 128)
    kept = tiled(x, 1, 128, **options)
    y = kept @ weight
    dx = tiled(dy, 1, 128, power_of_two=back) @ weight.T
    dw = tiled(kept, 128, 1, **options).T @ tiled(dy, 128, 1, power_of_two=back)
    return y, dx, dw


def grouped(x: Any, w: Any, dy: Any, sizes: list[int], *, place: str) -> tuple[Array, Array, Array]:
    """The same for consecutive groups of rows, each with its own matrix."""
    ends = np.cumsum(sizes)
    parts = [
        linear(x[end - size : end], w[group], dy[end - size : end], place=place) if size else None
        for group, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    y, dx = (np.concatenate([part[i] for part in parts if part]) for i in (0, 1))
    return y, dx, np.stack([np.zeros(w[0].shape) if part is None else part[2] for part in parts])


def _cut(value: Fraction, unit: Fraction) -> Fraction:
    """`value` without what lies below `unit`, toward zero."""
    return math.trunc(value / unit) * unit


def _unit(values: list[Fraction], bits: int) -> Fraction:
    """The place of the last of `bits` bits, counted from the leading bit of the largest of `values`."""
    largest = max(abs(value) for value in values)
    exponent = math.frexp(largest)[1] if largest else 0  # 2^(exponent - 1) <= largest < 2^exponent
    return Fraction(2) ** (exponent - bits)


def accumulated(x: Any, w: Any, *, bits: int, width: int, promote: int | None) -> Array:
    """x w as tensor cores add it, in rational numbers: `width` products and the register at a time, in `bits` bits."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    inner = x.shape[1]
    out = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for row, column in np.ndindex(*out.shape):
        products = [Fraction(a) * Fraction(b) for a, b in zip(x[row], w[:, column], strict=True)]
        for first in range(0, inner, promote or inner):
            interval, register = products[first : first + (promote or inner)], Fraction(0)
            for start in range(0, len(interval), width):
                addends = [register, *interval[start : start + width]]
                unit = _unit(addends, bits)
                total = sum((_cut(addend, unit) for addend in addends), Fraction(0))
                register = _cut(total, max(unit, _unit([total], bits)))
            out[row, column] += np.float32(float(register))
    return out
