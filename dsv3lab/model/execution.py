"""How the mathematics is carried out: one frozen set of functions that `DeepSeek.forward` receives.

The model never names a device, a mesh axis or a number format. `LOCAL` runs on one device in the dtype of the
parameters; other rooms build an `Execution` with their own functions.
"""

import functools as ft
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dsv3lab.model.exchange import local_exchange
from dsv3lab.model.grouped import grouped_matmul


def matmul(x: Float[Array, "... inner"], w: Float[Array, "inner outer"]) -> Float[Array, "... outer"]:
    """`x @ w`."""
    return x @ w


def identity(x: Any) -> Any:
    """`x` as it is: the collective of one device."""
    return x


def visible(seq: int, segments: Int[Array, "batch seq"] | None) -> Bool[Array, "#batch 1 seq seq"]:
    """Which key (last axis) each query may see: none after it, none of another segment."""
    causal = jnp.tril(jnp.ones((seq, seq), bool))[None, None]
    if segments is None:
        return causal
    return causal & (segments[:, None, :, None] == segments[:, None, None, :])


def attention(
    query: Float[Array, "batch seq heads qk"],
    key: Float[Array, "batch seq heads qk"],
    value: Float[Array, "batch seq heads v"],
    *,
    scale: float,
    segments: Int[Array, "batch seq"] | None,
) -> Float[Array, "batch seq heads v"]:
    """Causal softmax attention, softmax in float32; order in the sequence decides what is the past, not positions."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key).astype(jnp.float32)
    scores = jnp.where(visible(query.shape[1], segments), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


@dataclass(frozen=True)
class Execution:
    """The functions that `DeepSeek.forward` is carried out with; hashable, so that it can be a static argument.

    Attributes:
        matmul: `(x [..., in], w [in, out]) -> [..., out]`, for every projection except the router.
        grouped_matmul: `(x [rows, in], w [experts, in, out], group_sizes [experts]) -> [rows, out]`.
        exchange: brings rows to their experts and back, see `exchange.local_exchange`.
        attention: `(query, key, value, *, scale, segments) -> mixed values`, all [batch, seq, heads, width].
        sum_tp: sum of partial outputs over the tensor-parallel shards.
        gather_seq: the whole sequence from its shards, before a block's projections.
        scatter_seq: this shard's part of the sequence, after a block's projections.
        gather_params: the whole parameters of one unit of blocks from their shards.
        remat: wraps the function of one unit of blocks, e.g. `jax.checkpoint`.
        scan: whether a stack's units run in `lax.scan` (compiles once) or unrolled.
    """

    matmul: Callable[..., Array] = matmul
    grouped_matmul: Callable[..., Array] = grouped_matmul
    exchange: Callable[..., Array] = local_exchange
    attention: Callable[..., Array] = attention
    sum_tp: Callable[[Array], Array] = identity
    gather_seq: Callable[[Array], Array] = identity
    scatter_seq: Callable[[Array], Array] = identity
    gather_params: Callable[[Any], Any] = identity
    remat: Callable[[Callable[..., Any]], Callable[..., Any]] = identity
    scan: bool = True


LOCAL = Execution()

# The same mathematics with every product visible in the trace, for counting FLOPs: the fast CPU path loops over as
# many blocks as there are rows to fill, a number that a trace does not hold.
COUNTABLE = Execution(grouped_matmul=ft.partial(grouped_matmul, implementation="ragged"))
