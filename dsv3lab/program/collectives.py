"""The communication of a traced program: collectives by mesh axis and bytes.

Read from the trace, where each collective still stands with its axis and payload: text lowered for automatic sharding
holds none, and the compiler may merge what the program asks for one by one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv3lab.program.walk import sites

# Names in the trace -> what the operation is called outside JAX. `pvary` and `pcast` only change a type: no bytes move.
_NAMES = {
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "pmax": "all_reduce_max",
    "pmin": "all_reduce_min",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "ragged_all_to_all": "ragged_all_to_all",
    "ppermute": "permute",
}


@dataclass(frozen=True)
class Collective:
    """One array that one place of the program communicates.

    name: all_reduce, all_gather, reduce_scatter, all_to_all, permute, ...
    axes: the mesh axes that it runs over.
    bytes: payload that one device puts in, in one execution (what a link carries depends on the algorithm).
    count: executions in one call of the program.
    dtype, shape: of that array, on one device.
    """

    name: str
    axes: tuple[str, ...]
    bytes: int
    count: int
    dtype: str
    shape: tuple[int, ...]


def collectives(fn: Callable[..., Any], *args: Any) -> list[Collective]:
    """The collectives of `fn(*args)`, in program order, one for each array.

    Args:
        fn: any function of PyTrees; leaves that are not arrays are static.
        args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: for a collective inside a `while` or `cond`.
    """
    found = []
    for site in sites(fn, *args):
        if site.eqn.primitive.name not in _NAMES:
            continue
        params = site.eqn.params
        axes = params["axes"] if "axes" in params else params["axis_name"]
        named = tuple(axis for axis in (axes if isinstance(axes, (tuple, list)) else (axes,)) if isinstance(axis, str))
        if not named:  # a sum over a position of the array, left by vmap
            continue
        for operand in site.eqn.invars:
            shape, dtype = operand.aval.shape, operand.aval.dtype  # type: ignore[attr-defined]
            size = math.prod(shape) * dtype.itemsize
            found.append(Collective(_NAMES[site.eqn.primitive.name], named, size, site.count(), str(dtype), shape))
    return found
