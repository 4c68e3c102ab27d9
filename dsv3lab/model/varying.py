"""Types inside `shard_map`: arrays that differ between devices are marked as varying over mesh axes."""

import jax
from jaxtyping import Array


def align(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each marked as varying over every mesh axis that any of them varies over; outside `shard_map` as is.

    A loop's carry and a custom derivative need equal marks before and after. No data moves, and the transpose of the
    mark is the sum over the axis, which is what a weight shared by all devices needs.
    """
    marks = [jax.typeof(array).mat.varying for array in arrays]
    axes = frozenset().union(*marks)
    return tuple(
        jax.lax.pcast(array, tuple(sorted(axes - mark)), to="varying") if axes - mark else array
        for array, mark in zip(arrays, marks, strict=True)
    )
