"""Grouped matrix product: consecutive groups of rows, each with its own matrix."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsv3lab.model.varying import align

Implementation = Literal["reference", "ragged", "blocked"]
BLOCK, REMAINDER = 512, 64


def grouped_matmul(
    x: Float[Array, "rows inner"],
    w: Float[Array, "experts inner outer"],
    group_sizes: Int[Array, " experts"],
    *,
    implementation: Implementation | None = None,
    place: str = "",
) -> Float[Array, "rows outer"]:
    """`x[r] @ w[e]` where row r belongs to group e: the first `group_sizes[0]` rows to group 0, and so on.

    The result has the dtype of `x`, to which `w` is cast; sums of bfloat16 products run in float32. "blocked" and
    "ragged" never round the gradient of a float32 `w` to bfloat16; JAX's own derivative of "reference" does.

    Args:
        x: rows sorted by group.
        w: one matrix for each group.
        group_sizes: rows of each group, int32; they sum to the number of rows.
        implementation: "reference" computes every row with every matrix and picks (the slow truth); "ragged" is
            `jax.lax.ragged_dot`, which expands to experts x rows on CPU; "blocked" walks each group in blocks of rows
            and touches only its own matrix. None: "blocked" on CPU, "ragged" elsewhere.
        place: names the layer; all are multiplied alike here.

    Raises:
        ValueError: for an unknown implementation.
    """
    del place
    if implementation is None:
        implementation = "blocked" if jax.default_backend() == "cpu" else "ragged"
    if implementation == "reference":
        return _reference(x, w.astype(x.dtype), group_sizes)
    if implementation == "ragged":
        if w.dtype == x.dtype:
            return jax.lax.ragged_dot(x, w, group_sizes)
        return _mixed(*align(x, w, group_sizes))
    if implementation == "blocked":
        return _blocked(*align(x, w, group_sizes)) if x.shape[0] else _reference(x, w.astype(x.dtype), group_sizes)
    raise ValueError(f"grouped_matmul: unknown implementation {implementation!r}; known: reference, ragged, blocked")


def _reference(x: Array, w: Array, group_sizes: Array) -> Array:
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(x.shape[0]), side="right")
    member = group[:, None] == jnp.arange(w.shape[0])
    return jnp.sum(jnp.where(member[:, :, None], jnp.einsum("ri,eio->reo", x, w), 0), axis=1)


@jax.custom_vjp
def _mixed(x: Array, w: Array, group_sizes: Array) -> Array:
    return jax.lax.ragged_dot(x, w.astype(x.dtype), group_sizes, preferred_element_type=jnp.float32).astype(x.dtype)


def _mixed_fwd(x: Array, w: Array, group_sizes: Array) -> Any:
    return _mixed(x, w, group_sizes), (x, w, group_sizes)


def _mixed_bwd(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    x, w, group_sizes = saved
    dx = _mixed(dy, jnp.swapaxes(w, 1, 2), group_sizes)
    dw = jax.lax.ragged_dot_general(x, dy, group_sizes, _WEIGHT_GRADIENT, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype), None


_mixed.defvjp(_mixed_fwd, _mixed_bwd)
_WEIGHT_GRADIENT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
"""For each group its rows of one factor, transposed, with its rows of the other."""


class _Group(NamedTuple):
    """Rows `start` to `end` of one group: `blocks` whole blocks, and `rests` smaller ones for what is left over."""

    start: Array
    end: Array
    blocks: Array
    rests: Array
    rest: int

    @staticmethod
    def of(group_sizes: Array, group: Array, rows: int) -> "_Group":
        rest = min(REMAINDER, rows)
        size, end = group_sizes[group], jnp.cumsum(group_sizes)[group]
        blocks = size // BLOCK if rows >= BLOCK else jnp.zeros_like(size)
        return _Group(end - size, end, blocks, -(-(size - blocks * BLOCK) // rest), rest)

    def whole(self, i: Array) -> Array:
        """First row of the group's i-th whole block."""
        return self.start + i * BLOCK

    def left(self, i: Array, rows: int) -> tuple[Array, Array]:
        """First row of the i-th smaller block, and which of its rows are the group's and in no block before it.

        The last one may reach into the next group; at the end of all rows it is moved back instead.
        """
        first = self.start + self.blocks * BLOCK + i * self.rest
        place = jnp.minimum(first, rows - self.rest)
        row = place + jnp.arange(self.rest)
        return place, ((row >= first) & (row < self.end))[:, None]


def _multiply(x: Array, w: Array, group_sizes: Array, *, transposed: bool) -> Array:
    """Each row with its group's matrix, or with its transpose; the transpose is read in place, not copied."""
    rows, contracted = x.shape[0], 1 if transposed else 0

    def one(group: Array, out: Array) -> Array:
        matrix, its = w[group].astype(x.dtype), _Group.of(group_sizes, group, rows)

        def product(first: Array, size: int) -> Array:
            part = jax.lax.dynamic_slice_in_dim(x, first, size)
            axes = (((1,), (contracted,)), ((), ()))
            return jax.lax.dot_general(part, matrix, axes, preferred_element_type=jnp.float32).astype(x.dtype)

        def whole(i: Array, out: Array) -> Array:
            first = its.whole(i)
            return jax.lax.dynamic_update_slice_in_dim(out, product(first, BLOCK), first, axis=0)

        def left(i: Array, out: Array) -> Array:
            first, own = its.left(i, rows)
            kept = jax.lax.dynamic_slice_in_dim(out, first, its.rest)
            part = jnp.where(own, product(first, its.rest), kept)
            return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=0)

        if rows >= BLOCK:
            out = jax.lax.fori_loop(0, its.blocks, whole, out)
        return jax.lax.fori_loop(0, its.rests, left, out)

    out = align(jnp.zeros((rows, w.shape[1 if transposed else 2]), x.dtype), x)[0]
    return jax.lax.fori_loop(0, w.shape[0], one, out)


def _weight_gradient(x: Array, cotangent: Array, group_sizes: Array) -> Array:
    """For each group the product of its rows of `x`, transposed, with its rows of `cotangent`, float32."""
    rows, shape = x.shape[0], (x.shape[1], cotangent.shape[1])

    def outer(part: Array, first: Array) -> Array:
        other = jax.lax.dynamic_slice_in_dim(cotangent, first, part.shape[0])
        return jax.lax.dot_general(part, other, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def one(group: Array, gradient: Array) -> Array:
        its = _Group.of(group_sizes, group, rows)

        def whole(i: Array, total: Array) -> Array:
            first = its.whole(i)
            return total + outer(jax.lax.dynamic_slice_in_dim(x, first, BLOCK), first)

        def left(i: Array, total: Array) -> Array:
            first, own = its.left(i, rows)
            return total + outer(jnp.where(own, jax.lax.dynamic_slice_in_dim(x, first, its.rest), 0), first)

        total = align(jnp.zeros(shape, jnp.float32), x)[0]
        if rows >= BLOCK:
            total = jax.lax.fori_loop(0, its.blocks, whole, total)
        total = jax.lax.fori_loop(0, its.rests, left, total)
        return jax.lax.dynamic_update_slice_in_dim(gradient, total[None], group, axis=0)

    gradient = align(jnp.zeros((group_sizes.shape[0], *shape), jnp.float32), x)[0]
    return jax.lax.fori_loop(0, group_sizes.shape[0], one, gradient)


@jax.custom_vjp
def _blocked(x: Array, w: Array, group_sizes: Array) -> Array:
    return _multiply(x, w, group_sizes, transposed=False)


def _blocked_fwd(x: Array, w: Array, group_sizes: Array) -> Any:
    return _blocked(x, w, group_sizes), (x, w, group_sizes)


def _blocked_bwd(saved: tuple[Array, Array, Array], cotangent: Array) -> Any:
    x, w, group_sizes = saved
    dx = _multiply(cotangent, w, group_sizes, transposed=True)
    return dx, _weight_gradient(x, cotangent, group_sizes).astype(w.dtype), None


_blocked.defvjp(_blocked_fwd, _blocked_bwd)
