"""Bringing routed tokens to their experts and back: on one device a sort, and nothing is dropped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dsv3lab.model.varying import align


def expert_order(
    ids: Int[Array, "tokens top"], *, num_experts: int
) -> tuple[Int[Array, " rows"], Int[Array, "tokens top"], Int[Array, " experts"]]:
    """The stable sort of the (token, choice) pairs by expert.

    Returns:
        source: for each sorted row the flat pair `token * top + choice` that it holds.
        place: for each pair the sorted row that holds it, the inverse of `source`.
        group_sizes: rows of each expert, int32.
    """
    flat = ids.reshape(-1)
    source = jnp.argsort(flat, stable=True).astype(jnp.int32)
    place = jnp.argsort(source).astype(jnp.int32)
    group_sizes = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return source, place.reshape(ids.shape), group_sizes


@jax.custom_vjp
def _collect(x: Array, source: Array, place: Array) -> Array:
    return x[source // place.shape[1]]


@jax.custom_vjp
def _combine(rows: Array, source: Array, place: Array) -> Array:
    return jnp.sum(rows[place], axis=1)


# Each is the transpose of the other. Left to itself JAX transposes a gather into a scatter-add, which is slow;
# for a permutation it is the gather by the inverse.
def _collect_fwd(x: Array, source: Array, place: Array) -> tuple[Array, tuple[Array, Array]]:
    return _collect(x, source, place), (source, place)


def _collect_bwd(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    return _combine(cotangent, *saved), None, None


def _combine_fwd(rows: Array, source: Array, place: Array) -> tuple[Array, tuple[Array, Array]]:
    return _combine(rows, source, place), (source, place)


def _combine_bwd(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    return _collect(cotangent, *saved), None, None


_collect.defvjp(_collect_fwd, _collect_bwd)
_combine.defvjp(_combine_fwd, _combine_bwd)


def local_exchange(
    expert_fn: Callable[[Array, Array, Array], Array],
    x: Float[Array, "tokens width"],
    ids: Int[Array, "tokens top"],
    gates: Float[Array, "tokens top"],
    *,
    num_experts: int,
) -> Float[Array, "tokens width"]:
    """Sum over each token's chosen experts of gate times expert, all experts on this device, no token dropped.

    Args:
        expert_fn: `(rows [rows, width], row_gates [rows], group_sizes [experts]) -> [rows, width]`: the experts on
            rows sorted by expert, each row already multiplied by its gate.
        x: one row per token.
        ids: chosen experts of each token.
        gates: their weights.
        num_experts: routed experts in all.
    """
    source, place, group_sizes = expert_order(ids, num_experts=num_experts)
    x, gates, source, place = align(x, gates, source, place)
    rows = _collect(x, source, place)
    row_gates = _collect(gates.reshape(-1, 1), source, place.reshape(-1, 1))[:, 0]
    return _combine(expert_fn(rows, row_gates, group_sizes), source, place)
