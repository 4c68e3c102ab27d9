"""What the measurements promise: order of the calls, waiting, units."""

import jax
import jax.numpy as jnp
import psutil
import pytest

from dsv3lab import measure


def test_calls_are_interleaved_after_the_warm_up():
    calls = []
    timings = measure.median_time({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert list(timings) == ["a", "b"]
    assert all(len(t.samples) == 3 and t.median_s <= t.p95_s for t in timings.values())


def test_a_settling_call_of_the_same_function_comes_before_each_timed_one():
    calls = []
    fns = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = measure.median_time(fns, repeats=2, warmup=0, settle=1)
    assert calls == ["a", "a", "b", "b"] * 2
    assert all(len(t.samples) == 2 for t in timings.values())


def test_no_repeats_is_refused():
    with pytest.raises(ValueError, match="repeats: 0"):
        measure.median_time({"a": lambda: None}, repeats=0)


def test_summary_is_the_median_and_the_nearest_rank():
    timing = measure.summary([float(i) for i in range(20, 0, -1)])
    assert timing.median_s == 10.5
    assert timing.p95_s == 19.0
    assert timing.samples[0] == 20.0


def test_peaks_are_those_of_a_computer():
    assert 1e8 < measure.matmul_peak(size=128, repeats=2) < 1e16
    assert 1e8 < measure.matmul_peak(size=128, repeats=2, dtype=jnp.bfloat16) < 1e16
    assert 1e7 < measure.copy_peak(size=1 << 20, repeats=2) < 1e14


def test_a_call_grows_until_it_is_long_or_memory_ends():
    tried = []

    def seconds(size):  # launching takes 0.1 ms, the work 1 ps for each n^3
        tried.append(size)
        return 1e-4 + size**3 * 1e-12

    sizes = {"start": 256, "held": lambda n: 12 * n * n}
    assert measure.large_enough(seconds, **sizes, free=1 << 40) == 2048
    assert tried == [256, 512, 1024, 2048]
    assert measure.large_enough(seconds, **sizes, free=12 * 1024**2) == 1024
    assert measure.large_enough(seconds, **sizes, free=0) == 256
    assert measure.large_enough(lambda size: 1.0, **sizes, free=1 << 40) == 256


@pytest.mark.parametrize(("backend", "grown"), [("cpu", False), ("gpu", True)])
def test_only_an_accelerator_is_given_larger_calls(monkeypatch, backend, grown):
    """A timer under which every call lasts 1 ms up to 2048 (or 256 MiB) and 8 ms beyond."""
    sizes = []

    def timed(calls, *, repeats):
        (call,) = calls.values()
        array = call()
        sizes.append(array.shape[0])
        slow = array.shape[0] >= (2048 if array.ndim == 2 else 1 << 27)
        return {"call": measure.summary([8e-3 if slow else 1e-3] * repeats)}

    monkeypatch.setattr(measure.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(measure, "median_time", timed)
    assert measure.matmul_peak() == (2 * 2048**3 / 8e-3 if grown else 2 * 1024**3 / 1e-3)
    assert measure.copy_peak() == (2 * (1 << 29) / 8e-3 if grown else 2 * (1 << 28) / 1e-3)
    assert sizes == ([1024, 2048, 2048, 1 << 26, 1 << 27, 1 << 27] if grown else [1024, 1 << 26])


def test_peak_memory_is_in_bytes_and_not_below_what_is_resident():
    resident = psutil.Process().memory_info().rss
    assert resident <= measure.peak_rss_bytes() + (1 << 20) < psutil.virtual_memory().total


class Device:
    """A device whose runtime says so much of its memory."""

    def __init__(self, stats: dict[str, int] | None) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


@pytest.mark.parametrize(
    ("stats", "found"),
    [
        (None, {}),
        ({"bytes_limit": 100}, {}),
        ({"bytes_in_use": 3, "peak_bytes_in_use": 5, "bytes_limit": 0}, {"live_bytes": 3.0, "peak_bytes": 5.0}),
        (
            {"bytes_in_use": 3, "peak_bytes_in_use": 5, "bytes_limit": 100, "pool_bytes": 4, "peak_pool_bytes": 8},
            {"live_bytes": 3.0, "peak_bytes": 5.0, "peak_share": 0.05, "pool_used": 0.625},
        ),
    ],
)
def test_the_memory_of_a_device_is_what_its_runtime_tells(monkeypatch, stats, found):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(stats)])
    assert measure.device_memory() == {f"memory/device_{name}": value for name, value in found.items()}
