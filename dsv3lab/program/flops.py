"""Matmul FLOPs of a traced program, as an exact integer.

XLA's own `cost_analysis` counts the body of a scan once, whatever its length, and counts what the compiler made of the
program; the walk over the trace counts what the mathematics asks for.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import JaxprEqn

from dsv3lab.program.walk import sites


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """Matmul FLOPs of `fn(*args)` on all its devices together: 2 m k n for [m, k] times [k, n].

    Counted: `dot_general` and `ragged_dot` (each row meets one group's matrix, so groups do not multiply the work), a
    scan's body times its length, both times that rematerialised work runs, a `shard_map`'s body on each of its devices.
    Everything else (elementwise work, reductions, sorts, gathers) counts as nothing.

    Args:
        fn: any function of PyTrees; leaves that are not arrays are static.
        args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ValueError: for a matmul inside a `while` or `cond`, or a convolution or kernel that the walk cannot count.
    """
    total = 0
    for site in sites(fn, *args):
        work = _work(site.eqn)
        if work:
            total += work * site.count() * site.devices
    return total


def _work(eqn: JaxprEqn) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return _product(eqn, contract)
    if name == "ragged_dot_general":
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contract, _), _ = numbers.dot_dimension_numbers
        # When the ragged rows are summed over (the gradient of the matrices), the groups share them: the result has a
        # leading axis of groups, and each row contributes to one of them.
        (ragged,) = numbers.lhs_ragged_dimensions
        groups = eqn.outvars[0].aval.shape[0] if ragged in contract else 1  # type: ignore[attr-defined]
        return _product(eqn, contract) // groups
    if name in ("conv_general_dilated", "pallas_call", "ffi_call", "scaled_dot"):
        raise ValueError(f"'{name}' is not counted; trace the path that is written with matmuls")
    return 0


def _product(eqn: JaxprEqn, contract: tuple[int, ...]) -> int:
    """2 x elements of the result x elements summed for each."""
    left, out = eqn.invars[0].aval, eqn.outvars[0].aval
    depth = math.prod(left.shape[axis] for axis in contract)  # type: ignore[attr-defined]
    return 2 * math.prod(out.shape) * depth  # type: ignore[attr-defined]
