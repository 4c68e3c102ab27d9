"""The linear layers of an FP8 model: three quantised products each, plugged in through `Execution` (report 3.3).

Tiles always run along the axis that is summed over, so each product quantises its factors in its own orientation:

    Fprop  y  = x w       x in 1x128 along inner, w in 128x128
    Dgrad  dx = dy w^T    dy in 1x128 along outer, the same w
    Wgrad  dw = x^T dy    x and dy in 128x1, along tokens

The input is kept for the backward pass as it went into Fprop, eight bits for each number, and quantised once more for
Wgrad. Which layers differ, and which are not quantised at all: `RECIPES`, `KEPT`, FP8.md.
"""

import functools as ft
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.model import fp8
from dsv3lab.model.execution import matmul
from dsv3lab.model.fp8 import TILE, Format, Quantised
from dsv3lab.model.grouped import grouped_matmul
from dsv3lab.model.varying import align

ROW, COLUMN, BLOCK = (1, TILE), (TILE, 1), (TILE, TILE)


@dataclass(frozen=True)
class Recipe:
    """How one kind of linear layer is quantised.

    Attributes:
        format: of its input.
        power_of_two: whether the input's scales are powers of two.
        gradient_power_of_two: the same for the gradient of its output.
    """

    format: Format = "e4m3"
    power_of_two: bool = False
    gradient_power_of_two: bool = False


RECIPES = {
    # Attention's backward pass needs this input too, so it gets more bits, and scales that survive the second tiling.
    "attention.out": Recipe(format="e5m6", power_of_two=True),
    # What is sent to the experts is quantised before it is sent; so is the gradient that comes back to their outputs.
    "experts.gate_up": Recipe(power_of_two=True),
    "experts.down": Recipe(gradient_power_of_two=True),
}
"""The layers that the report treats specially (3.3.3); every other one has `Recipe()`."""

KEPT = frozenset({"mtp.project", "head"})
"""Products that stay in the precision of the activations, beside embedding, router, norms and attention (3.3.1)."""


def fp8_matmul(
    x: Float[Array, "... inner"], w: Float[Array, "inner outer"], *, place: str = ""
) -> Float[Array, "... outer"]:
    """`x @ w` in FP8 as `RECIPES` says for `place`, forward and backward; the result has the dtype of `x`.

    The gradient of `w` has the dtype of `w`: the master weights are float32.
    """
    if place in KEPT:
        return matmul(x, w, place=place)
    flat, w = align(x.reshape(-1, x.shape[-1]), w)
    y: Array = _linear(RECIPES.get(place, Recipe()), flat, w)
    return y.reshape(*x.shape[:-1], w.shape[-1])


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(recipe: Recipe, x: Array, w: Array) -> Array:
    return _linear_fwd(recipe, x, w)[0]


def _linear_fwd(recipe: Recipe, x: Array, w: Array) -> tuple[Array, Any]:
    rows = fp8.quantise(x, ROW, format=recipe.format, power_of_two=recipe.power_of_two)
    weight = fp8.quantise(w, BLOCK)
    y = fp8.product(rows, weight)
    return y.astype(x.dtype), (rows, weight, np.zeros(0, x.dtype), np.zeros(0, w.dtype))


def _linear_bwd(recipe: Recipe, saved: tuple[Quantised, Quantised, Any, Any], dy: Array) -> tuple[Array, Array]:
    rows, weight, x_like, w_like = saved
    gradient = _round(dy, ROW, power_of_two=recipe.gradient_power_of_two)
    dx = gradient @ fp8.dequantise(weight, BLOCK).T
    x = fp8.dequantise(rows, ROW)
    columns = _round(x, COLUMN, format=recipe.format, power_of_two=recipe.power_of_two)
    dw = columns.T @ _round(dy, COLUMN, power_of_two=recipe.gradient_power_of_two)
    return dx.astype(x_like.dtype), dw.astype(w_like.dtype)


_linear.defvjp(_linear_fwd, _linear_bwd)


def fp8_grouped_matmul(
    x: Float[Array, "rows inner"],
    w: Float[Array, "experts inner outer"],
    group_sizes: Int[Array, " experts"],
    *,
    place: str = "",
) -> Float[Array, "rows outer"]:
    """`grouped_matmul` in FP8, see `fp8_matmul`; the tiles of Wgrad start anew at each expert's first row."""
    x, w, group_sizes = align(x, w, group_sizes)
    return _grouped(RECIPES.get(place, Recipe()), x, w, group_sizes)


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(recipe: Recipe, x: Array, w: Array, group_sizes: Array) -> Array:
    return _grouped_fwd(recipe, x, w, group_sizes)[0]


def _grouped_fwd(recipe: Recipe, x: Array, w: Array, group_sizes: Array) -> tuple[Array, Any]:
    rows = fp8.quantise(x, ROW, format=recipe.format, power_of_two=recipe.power_of_two)
    weight = fp8.quantise(w, BLOCK)
    y = grouped_matmul(fp8.dequantise(rows, ROW), fp8.dequantise(weight, BLOCK), group_sizes)
    return y.astype(x.dtype), (rows, weight, group_sizes, np.zeros(0, x.dtype), np.zeros(0, w.dtype))


def _grouped_bwd(recipe: Recipe, saved: Any, dy: Array) -> tuple[Array, Array, None]:
    rows, weight, group_sizes, x_like, w_like = saved
    matrices = fp8.dequantise(weight, BLOCK)
    gradient = _round(dy, ROW, power_of_two=recipe.gradient_power_of_two)
    dx = grouped_matmul(gradient, jnp.swapaxes(matrices, 1, 2), group_sizes)
    tiles = _Tiles.of(group_sizes, rows=dy.shape[0])
    x = tiles.round(fp8.dequantise(rows, ROW), format=recipe.format, power_of_two=recipe.power_of_two)
    dy = tiles.round(dy, power_of_two=recipe.gradient_power_of_two)
    _, weight_gradient = jax.vjp(lambda m: grouped_matmul(x, m, group_sizes), matrices)
    return dx.astype(x_like.dtype), weight_gradient(dy)[0].astype(w_like.dtype), None


_grouped.defvjp(_grouped_fwd, _grouped_bwd)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of 128 rows that do not reach over the end of a group.

    Attributes:
        row: the row at each place of each tile [tiles, 128], or one past the last row where there is none.
        place: the flat place of each row in `row` [rows].
    """

    row: Array
    place: Array

    @staticmethod
    def of(group_sizes: Array, *, rows: int) -> "_Tiles":
        counts = -(-group_sizes // TILE)
        last, first_tile = jnp.cumsum(group_sizes), jnp.cumsum(counts) - counts
        index = jnp.arange(rows)
        group = jnp.searchsorted(last, index, side="right")
        place = first_tile[group] * TILE + index - (last - group_sizes)[group]
        tiles = rows // TILE + group_sizes.shape[0]  # each group has at most one tile that is not full
        row = jnp.full(tiles * TILE, rows, index.dtype).at[place].set(index)
        return _Tiles(row=row.reshape(tiles, TILE), place=place)

    def round(self, x: Array, *, format: Format = "e4m3", power_of_two: bool = False) -> Array:
        """`x` [rows, width] as its tiles of 128x1 hold it, float32."""
        padded = jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])
        tiled = _round(padded[self.row], COLUMN, format=format, power_of_two=power_of_two)
        return tiled.reshape(-1, x.shape[1])[self.place]


def _round(
    x: Array, tile: tuple[int, int], *, format: Format = "e4m3", power_of_two: bool = False
) -> Float[Array, "..."]:
    """`x` as its quantised form holds it, float32."""
    return fp8.dequantise(fp8.quantise(x, tile, format=format, power_of_two=power_of_two), tile)
