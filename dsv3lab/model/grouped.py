"""Grouped matrix product: consecutive groups of rows, each with its own matrix."""

import functools as ft
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsv3lab.model.varying import align

Implementation = Literal["reference", "ragged", "blocked"]
BLOCK = 256


def grouped_matmul(
    x: Float[Array, "rows inner"],
    w: Float[Array, "experts inner outer"],
    group_sizes: Int[Array, " experts"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "rows outer"]:
    """`x[r] @ w[e]` where row r belongs to group e: the first `group_sizes[0]` rows to group 0, and so on.

    Args:
        x: rows sorted by group.
        w: one matrix for each group.
        group_sizes: rows of each group, int32; they sum to the number of rows.
        implementation: "reference" computes every row with every matrix and picks (the slow truth); "ragged" is
            `jax.lax.ragged_dot`, which expands to experts x rows on CPU; "blocked" walks blocks of rows and touches
            only their own matrix. None: "blocked" on CPU, "ragged" elsewhere.

    Raises:
        ValueError: for an unknown implementation.
    """
    if implementation is None:
        implementation = "blocked" if jax.default_backend() == "cpu" else "ragged"
    if implementation == "reference":
        return _reference(x, w, group_sizes)
    if implementation == "ragged":
        return jax.lax.ragged_dot(x, w, group_sizes)
    if implementation == "blocked":
        return _blocked(*align(x, w, group_sizes), min(BLOCK, max(x.shape[0], 1)))
    raise ValueError(f"grouped_matmul: unknown implementation {implementation!r}; known: reference, ragged, blocked")


def _reference(x: Array, w: Array, group_sizes: Array) -> Array:
    group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(x.shape[0]), side="right")
    member = group[:, None] == jnp.arange(w.shape[0])
    return jnp.sum(jnp.where(member[:, :, None], jnp.einsum("ri,eio->reo", x, w), 0), axis=1)


def _table(group_sizes: Array, block: int) -> tuple[Array, Array, Array]:
    """First block of each group (and the number of blocks, last), and first row of each group."""
    blocks = jnp.cumsum(-(-group_sizes // block))
    ends = jnp.cumsum(group_sizes)
    return blocks, ends, ends - group_sizes


@ft.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blocked(x: Array, w: Array, group_sizes: Array, block: int) -> Array:
    rows, outer = x.shape[0], w.shape[2]
    last, _, starts = _table(group_sizes, block)
    first = last - -(-group_sizes // block)
    padded = jnp.pad(x, ((0, block), (0, 0)))

    # A group's last block runs over into the next group, whose own blocks come later and overwrite it.
    def body(i: Array, out: Array) -> Array:
        group = jnp.searchsorted(last, i, side="right", method="compare_all")
        start = starts[group] + (i - first[group]) * block
        product = jax.lax.dynamic_slice_in_dim(padded, start, block) @ w[group]
        return jax.lax.dynamic_update_slice_in_dim(out, product, start, axis=0)

    out = align(jnp.zeros((rows + block, outer), x.dtype), x)[0]
    return jax.lax.fori_loop(0, last[-1], body, out)[:rows]


def _blocked_fwd(x: Array, w: Array, group_sizes: Array, block: int) -> Any:
    return _blocked(x, w, group_sizes, block), (x, w, group_sizes)


def _blocked_bwd(block: int, saved: tuple[Array, Array, Array], cotangent: Array) -> Any:
    x, w, group_sizes = saved
    last, ends, starts = _table(group_sizes, block)
    first = last - -(-group_sizes // block)
    padded_x, padded_dy = (jnp.pad(a, ((0, block), (0, 0))) for a in (x, cotangent))

    def body(i: Array, dw: Array) -> Array:
        group = jnp.searchsorted(last, i, side="right", method="compare_all")
        start = starts[group] + (i - first[group]) * block
        inside = start + jnp.arange(block) < ends[group]
        rows = jnp.where(inside[:, None], jax.lax.dynamic_slice_in_dim(padded_x, start, block), 0)
        return dw.at[group].add(rows.T @ jax.lax.dynamic_slice_in_dim(padded_dy, start, block))

    dw = jax.lax.fori_loop(0, last[-1], body, align(jnp.zeros(w.shape, w.dtype), x)[0])
    dx = _blocked(cotangent, jnp.swapaxes(w, 1, 2), group_sizes, block)
    return dx, dw, None


_blocked.defvjp(_blocked_fwd, _blocked_bwd)
