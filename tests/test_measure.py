"""What the measurements promise: order of the calls, waiting, units."""

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


def test_peak_memory_is_in_bytes_and_not_below_what_is_resident():
    resident = psutil.Process().memory_info().rss
    assert resident <= measure.peak_rss_bytes() + (1 << 20) < psutil.virtual_memory().total
