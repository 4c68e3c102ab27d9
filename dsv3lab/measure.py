"""Measurements of this process and machine: interleaved medians, peak matmul and copy rates, memory.

Speed is compared as a ratio inside one run, because absolute times of a shared machine wander. So functions that are
compared are timed interleaved (a, b, a, b, ...): a slow minute then hits all of them.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of one function, in seconds."""

    median_s: float
    p95_s: float
    samples: tuple[float, ...]


def median_time(
    fns: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1, settle: int = 0
) -> dict[str, Timing]:
    """Time each function `repeats` times, interleaved, each result waited for.

    Args:
        fns: name -> function without arguments; what it returns is passed to `jax.block_until_ready`.
        repeats: timed calls of each function.
        warmup: calls of each function before any timing (they compile).
        settle: untimed calls of a function before each timed one. The memory that a function gives back is fetched
            again from the system by the next one, page by page; with large arrays compared functions need one.

    Returns:
        name -> `Timing`, in the order of `fns`.

    Raises:
        ValueError: if `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} leaves nothing to take a median of; it must be at least 1")
    for _ in range(warmup):
        for fn in fns.values():
            jax.block_until_ready(fn())
    samples: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(repeats):
        for name, fn in fns.items():
            for _ in range(settle):
                jax.block_until_ready(fn())
            start = time.perf_counter()
            jax.block_until_ready(fn())
            samples[name].append(time.perf_counter() - start)
    return {name: summary(times) for name, times in samples.items()}


def summary(samples: list[float]) -> Timing:
    """Median and 95th percentile (nearest rank) of `samples`, in seconds."""
    ordered = sorted(samples)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return Timing(median_s=statistics.median(ordered), p95_s=p95, samples=tuple(samples))


LONG_S = 5e-3
"""What one call must take on an accelerator, in seconds, so that launching it does not count."""


def matmul_peak(*, size: int | None = None, repeats: int = 5, dtype: DTypeLike = jnp.float32) -> float:
    """FLOP/s of the fastest of `repeats` square matmuls: the roof that this process can reach now.

    Args:
        size: side of the square matrices; one product is 2 * size**3 FLOPs. None: 1024, and off CPU, where such a
            product is launched for longer than it runs, doubled until one takes `LONG_S`.
        repeats: timed products; the fastest counts, since other load only ever slows one down.
        dtype: element type of both factors.
    """
    item = jnp.dtype(dtype).itemsize
    return _peak(
        lambda n: _product(n, dtype), size, 1024, repeats, work=lambda n: 2 * n**3, held=lambda n: 3 * n * n * item
    )


def copy_peak(*, size: int | None = None, repeats: int = 5) -> float:
    """Bytes/s of the fastest of `repeats` passes that read and write one array of `size` bytes (both are counted).

    Without a `size` the array has 256 MiB, more than caches hold (64 MiB gave 55 to 111 GB/s in a minute on an EPYC), and
    off CPU is doubled until one pass takes `LONG_S`. The pass writes where it read: a new array would have its pages
    cleared by the kernel first, and the roof would be that of the allocator.
    """
    return _peak(_pass, size, 1 << 28, repeats, work=lambda n: 2 * n, held=lambda n: n)


def large_enough(
    seconds: Callable[[int], float], *, start: int, held: Callable[[int], int], free: int, long: float = LONG_S
) -> int:
    """The first of `start`, 2 `start`, 4 `start`, ... of which a call takes more than `long` seconds.

    Args:
        seconds: time of one call at a size.
        start: the smallest size.
        held: bytes in memory at a size; the next size is not tried if it would hold more than `free`.
        free: bytes that may be held.
        long: seconds.
    """
    size = start
    while seconds(size) <= long and held(2 * size) <= free:
        size *= 2
    return size


def _product(side: int, dtype: DTypeLike) -> Callable[[], Any]:
    left, right = jnp.full((side, side), 0.5, dtype), jnp.full((side, side), 0.25, dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right)


def _pass(size: int) -> Callable[[], Any]:
    array = jnp.zeros(size // 4, jnp.float32)
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def call() -> Any:
        nonlocal array
        array = step(array)
        return array

    return call


def _peak(
    at: Callable[[int], Callable[[], Any]],
    size: int | None,
    start: int,
    repeats: int,
    *,
    work: Callable[[int], int],
    held: Callable[[int], int],
) -> float:
    """Work for each second of the fastest call of `at(size)`, see `matmul_peak`."""

    def fastest(size: int, repeats: int) -> float:
        return min(median_time({"call": at(size)}, repeats=repeats)["call"].samples)

    if size is None and jax.default_backend() == "cpu":
        size = start  # long enough, and what thresholds were measured with
    elif size is None:
        size = large_enough(lambda n: fastest(n, 2), start=start, held=held, free=_spare_bytes())
    return work(size) / fastest(size, repeats)


def _spare_bytes() -> int:
    """A quarter of what is free on the first device, or 1 GiB where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats["bytes_limit"] - stats["bytes_in_use"]) // 4 if "bytes_limit" in stats else 1 << 30


def device_memory() -> dict[str, float]:
    """Memory of this process's first device, as far as its runtime tells it (nothing on CPU).

    Returns:
        `memory/device_live_bytes` (now) and `memory/device_peak_bytes` (at most so far); `memory/device_peak_share`, that
        peak over what the process may take; `memory/device_pool_used`, that peak over the largest pool that the allocator
        held, of which the rest lay reserved and unused. With XLA's default, which takes three quarters of the memory at
        the start, the pool is these; with XLA_PYTHON_CLIENT_PREALLOCATE=false it grows as it is needed.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    named = {"bytes_in_use": "memory/device_live_bytes", "peak_bytes_in_use": "memory/device_peak_bytes"}
    over = {"bytes_limit": "memory/device_peak_share", "peak_pool_bytes": "memory/device_pool_used"}
    peak = stats.get("peak_bytes_in_use")
    shares = {name: peak / stats[key] for key, name in over.items() if peak is not None and stats.get(key)}
    return {name: float(stats[key]) for key, name in named.items() if key in stats} | shares


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes
