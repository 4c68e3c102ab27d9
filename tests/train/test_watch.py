"""What a training process costs beside its steps."""

import gc

import jax
import jax.numpy as jnp
import pytest

from dsv3lab.train import watch

MEMORY = {"memory/process_live_bytes", "memory/process_peak_bytes"}
COUNTED = {"perf/gc_pauses", "perf/gc_pause_s", "perf/compilations", "perf/compilation_s", "perf/recompilations"}


def test_compilations_are_counted_and_one_in_a_steady_step_is_named() -> None:
    def triple(x: jax.Array) -> jax.Array:
        return 3 * x

    program, small, large = jax.jit(triple), jnp.ones(3), jnp.ones(4)
    with watch.Watch() as found:
        program(small)
        with found.steady(True):
            program(small)  # compiled already
        assert [(one.name, one.again) for one in found.compilations] == [("jit(triple)", False)]
        with found.steady(False):
            program(large)
        with found.steady(True):
            program(jnp.reshape(large, (2, 2)))
    program(jnp.ones(7))  # nobody watches any more
    assert "jit(triple)" in [one.name for one in found.recompiled()]
    metrics = found.metrics()
    assert metrics["perf/compilations"] == len(found.compilations) >= 3
    assert metrics["perf/recompilations"] == len(found.recompiled()) >= 1
    assert metrics["perf/compilation_s"] == pytest.approx(sum(one.seconds for one in found.compilations))


def test_pauses_of_the_garbage_collector_are_counted_only_while_watched() -> None:
    with watch.Watch() as found:
        before = found.pauses
        gc.collect()
        gc.collect()
    seen = found.pauses
    gc.collect()
    assert seen >= before + 2 and found.pauses == seen and found.pause_s > 0


def test_the_memory_is_that_of_the_process_and_of_a_device_that_tells_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watch.Watch().metrics()
    assert found.keys() == MEMORY | COUNTED
    assert 2**20 < found["memory/process_live_bytes"] <= found["memory/process_peak_bytes"]

    class Device:
        def memory_stats(self) -> dict[str, int]:
            mebibytes = {"bytes_in_use": 3, "peak_bytes_in_use": 5, "peak_pool_bytes": 8, "bytes_limit": 50}
            return {name: count * 2**20 for name, count in mebibytes.items()}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    metrics = watch.Watch().metrics()
    assert (metrics["memory/device_live_bytes"], metrics["memory/device_peak_bytes"]) == (3 * 2**20, 5 * 2**20)
    assert (metrics["memory/device_pool_used"], metrics["memory/device_peak_share"]) == (5 / 8, 0.1)
    assert "memory of the device: 3 MiB at the end, 5 MiB at most" in watch.totals(metrics)


def test_the_totals_are_lines_for_a_reader() -> None:
    values = {
        "memory/process_live_bytes": 2.0**30,
        "memory/process_peak_bytes": 1.5 * 2**30,
        "perf/gc_pauses": 12.0,
        "perf/gc_pause_s": 0.125,
        "perf/compilations": 30.0,
        "perf/compilation_s": 9.96,
        "perf/recompilations": 1.0,
    }
    assert watch.totals(values).splitlines() == [
        "memory of the process: 1,024 MiB at the end, 1,536 MiB at most",
        "garbage collector: 12 pauses, 0.12 s",
        "programs compiled or loaded from the cache: 30, 10.0 s; 1 of them in the middle of training",
    ]
