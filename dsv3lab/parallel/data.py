"""Data parallelism: each device takes a share of the batch, and gradients, losses and loads are joined.

Inside `shard_map` with `check_vma=True` every array is marked as equal on all devices or as varying between them. A
weight that is equal everywhere has its gradient summed over the devices by differentiation itself (the transpose of
the mark is a sum), once in every micro-batch. The step therefore marks its weights as varying before it differentiates
(`train.gradients` does): gradients stay local while they accumulate, and `mean_data` communicates each of them once.
Forgetting that mean is an error of types here, since a state that varies cannot leave as a replicated one.
"""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from dsv3lab.measure import median_time


def sum_over(tree: Any, *, axis: str) -> Any:
    """Sum of every array of `tree` over the devices of `axis`; integers stay integers."""
    return jax.tree.map(lambda leaf: jax.lax.psum(leaf, axis), tree)


def mean_over(tree: Any, *, axis: str) -> Any:
    """Mean of every array of `tree` over the devices of `axis`."""
    return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, axis), tree)


def data_parallel(
    step: Callable[..., tuple[Any, Any]], mesh: Mesh, *, axis: str = "data"
) -> Callable[[Any, Int[Array, "batch seq_plus_one"]], tuple[Any, Any]]:
    """The step of one device as a step of the whole mesh, compiled.

    Args:
        step: `step(state, windows, *, sum_data, mean_data, shard) -> (state, metrics)`, such as `train.train_step` with its
            settings bound. It must pass loads through `sum_data` before it takes their sign, and gradients and means
            through `mean_data`, so that what it returns is equal on all devices; `shard` is the device's number.
        mesh: the devices; `axis` is the one that splits the batch.
        axis: name of the mesh axis.

    Returns:
        A function of the same state (replicated) and the whole batch `windows`, in order: device i takes the i-th
        share. It raises ValueError for a batch that does not split into equal shares. Wait for each result before the
        next call on simulated devices (`jax.block_until_ready`), see `simulate_devices`.
    """
    hooks = {
        "sum_data": ft.partial(sum_over, axis=axis),
        "mean_data": ft.partial(mean_over, axis=axis),
        "shard": ft.partial(jax.lax.axis_index, axis),
    }

    @eqx.filter_jit
    def run(state: Any, windows: Array) -> tuple[Any, Any]:
        arrays, rest = eqx.partition(state, eqx.is_array)

        def on_device(arrays: Any, windows: Array) -> tuple[Any, Any]:
            new, metrics = step(eqx.combine(arrays, rest), windows, **hooks)
            return eqx.filter(new, eqx.is_array), metrics

        sharded = jax.shard_map(
            on_device, mesh=mesh, in_specs=(P(), P(axis)), out_specs=(P(), P()), axis_names={axis}, check_vma=True
        )
        arrays, metrics = sharded(arrays, windows)
        return eqx.combine(arrays, rest), metrics

    def stepped(state: Any, windows: Array) -> tuple[Any, Any]:
        if windows.shape[0] % mesh.shape[axis]:
            raise ValueError(
                f"data_parallel: a batch of {windows.shape[0]} sequences does not split into {mesh.shape[axis]} equal "
                f"shares; make train.batch_size a multiple of parallel.{axis}"
            )
        # Without its final place, the first call would compile for one device's state and the second once more.
        arrays, rest = eqx.partition(state, eqx.is_array)
        arrays = jax.device_put(arrays, NamedSharding(mesh, P()))
        return run(eqx.combine(arrays, rest), jax.device_put(windows, NamedSharding(mesh, P(axis))))

    return stepped


def all_reduce_rate(mesh: Mesh, size: int, *, repeats: int, axis: str = "data") -> float:
    """Bytes/s of an all-reduce alone: what each device puts in, over the median time until all have the sum.

    What a link carries is more by a factor that depends on the algorithm (2 (n - 1) / n for a ring of n devices).

    Args:
        mesh: the devices; `axis` is the one that is summed over.
        size: bytes of the array that each device puts in, rounded down to whole float32.
        repeats: timed calls.
        axis: name of the mesh axis.
    """
    ways = mesh.shape[axis]
    rows = jnp.ones((ways, size // 4), jnp.float32, device=NamedSharding(mesh, P(axis)))
    reduce = jax.jit(jax.shard_map(ft.partial(sum_over, axis=axis), mesh=mesh, in_specs=P(axis), out_specs=P()))
    timing = median_time({"all_reduce": lambda: reduce(rows)}, repeats=repeats)["all_reduce"]
    return size // 4 * 4 / timing.median_s
