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
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dsv3lab.model.causal import causal_attention
from dsv3lab.model.exchange import local_exchange
from dsv3lab.model.grouped import grouped_matmul
from dsv3lab.model.varying import align


def matmul(
    x: Float[Array, "... inner"], w: Float[Array, "inner outer"], *, place: str = ""
) -> Float[Array, "... outer"]:
    """`x @ w` in the dtype of `x`, with all axes of `x` but the last flattened into one.

    With several, the weight's gradient contracts over several axes, for which XLA on CPU first copies both factors:
    forward and backward of one product took 1.6 to 1.8 times as long at batch 8, 256 tokens, widths 96 to 1024.

    Where `w` is a float32 master weight of bfloat16 activations, it is cast for the product, sums run in float32, and
    its gradient is never rounded to bfloat16.
    """
    del place  # every linear layer is multiplied alike
    flat = x.reshape(-1, x.shape[-1])
    y = flat @ w if w.dtype == x.dtype else _mixed(*align(flat, w))
    return y.reshape(*x.shape[:-1], w.shape[-1])


@jax.custom_vjp
def _mixed(x: Array, w: Array) -> Array:
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _mixed_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mixed(x, w), (x, w)


def _mixed_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    dx = jnp.matmul(dy, w.astype(x.dtype).T, preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), jnp.matmul(x.T, dy, preferred_element_type=jnp.float32).astype(w.dtype)


_mixed.defvjp(_mixed_fwd, _mixed_bwd)


def identity(x: Any) -> Any:
    """`x` as it is: the collective of one device."""
    return x


@dataclass(frozen=True)
class Execution:
    """The functions that `DeepSeek.forward` is carried out with; hashable, so that it can be a static argument.

    Attributes:
        matmul: `(x [..., in], w [in, out], *, place) -> [..., out]`, for every projection except the router; `place`
            names the layer, e.g. "attention.out": what FP8 treats specially, or leaves alone.
        grouped_matmul: `(x [rows, in], w [experts, in, out], group_sizes [experts], *, place) -> [rows, out]`.
        exchange: brings rows to their experts and back, see `exchange.local_exchange`.
        attention: `(query, key, value, *, scale, segments) -> mixed values`, all [batch, seq, heads, width].
        sum_tp: sum of partial outputs over the tensor-parallel shards.
        gather_seq: the whole sequence from its shards, before a block's projections.
        scatter_seq: this shard's part of the sequence, after a block's projections.
        gather_params: the whole parameters of one unit of blocks from their shards.
        remat: wraps the function of one unit of blocks, e.g. `jax.checkpoint`.
        scan: whether a stack's units run in `lax.scan` (compiles once) or unrolled.
        residual_dropout: rate at which elements of what a sub-layer adds to the residual stream are dropped, when
            `forward` has a key.
        attention_dropout: the same for the heads' mixed values, before their output projection.
        activations: dtype of the residual stream, and so of everything that is computed in the dtype of its input;
            parameters keep theirs.
    """

    matmul: Callable[..., Array] = matmul
    grouped_matmul: Callable[..., Array] = grouped_matmul
    exchange: Callable[..., Array] = local_exchange
    attention: Callable[..., Array] = causal_attention
    sum_tp: Callable[[Array], Array] = identity
    gather_seq: Callable[[Array], Array] = identity
    scatter_seq: Callable[[Array], Array] = identity
    gather_params: Callable[[Any], Any] = identity
    remat: Callable[[Callable[..., Any]], Callable[..., Any]] = identity
    scan: bool = True
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0
    activations: DTypeLike = jnp.float32


LOCAL = Execution()

# The same mathematics with every product visible in the trace, for counting FLOPs: the fast CPU paths leave out what
# the causal mask hides, and loop over as many blocks as there are rows to fill, a number that a trace does not hold.
COUNTABLE = Execution(
    grouped_matmul=ft.partial(grouped_matmul, implementation="ragged"),
    attention=ft.partial(causal_attention, implementation="reference"),
)
