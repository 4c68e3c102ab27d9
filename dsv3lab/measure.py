"""Measurements of this process and machine: interleaved medians, peak matmul and copy rates, peak memory.

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


def matmul_peak(*, size: int = 1024, repeats: int = 5, dtype: DTypeLike = jnp.float32) -> float:
    """FLOP/s of the fastest of `repeats` square matmuls: the roof that this process can reach now.

    Args:
        size: side of the square matrices; one product is 2 * size**3 FLOPs.
        repeats: timed products; the fastest counts, since other load only ever slows one down.
        dtype: element type of both factors.
    """
    left = jnp.full((size, size), 0.5, dtype)
    right = jnp.full((size, size), 0.25, dtype)
    product = jax.jit(jnp.matmul)
    timing = median_time({"matmul": lambda: product(left, right)}, repeats=repeats)["matmul"]
    return 2 * size**3 / min(timing.samples)


def copy_peak(*, size: int = 1 << 26, repeats: int = 5) -> float:
    """Bytes/s of the fastest of `repeats` passes that read and write one array of `size` bytes (both are counted)."""
    array = jnp.zeros(size // 4, jnp.float32)
    step = jax.jit(lambda x: x + 1.0)
    timing = median_time({"copy": lambda: step(array)}, repeats=repeats)["copy"]
    return 2 * array.nbytes / min(timing.samples)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes
