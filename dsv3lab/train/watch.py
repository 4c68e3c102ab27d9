"""What a training process costs beside its steps: memory, pauses of the garbage collector, compilations."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
import psutil

from dsv3lab.measure import device_memory, peak_rss_bytes

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Compilation:
    """One program that XLA compiled, or that was loaded from the compilation cache instead.

    name: of the compiled function, e.g. `jit(step)`.
    seconds: what it took.
    again: whether it interrupted a step that should have found everything compiled, see `Watch.steady`.
    """

    name: str
    seconds: float
    again: bool


def totals(metrics: Mapping[str, float]) -> str:
    """What a training process cost beside its steps, from the newest values of `Watch.metrics`: one line for each."""
    lines = [
        f"{name}: {metrics[live] / 2**20:,.0f} MiB at the end, {metrics[peak] / 2**20:,.0f} MiB at most"
        for name, live, peak in (
            ("memory of the device", "memory/device_live_bytes", "memory/device_peak_bytes"),
            ("memory of the process", "memory/process_live_bytes", "memory/process_peak_bytes"),
        )
        if live in metrics and peak in metrics
    ]
    lines += [
        f"garbage collector: {metrics['perf/gc_pauses']:,.0f} pauses, {metrics['perf/gc_pause_s']:.2f} s",
        f"programs compiled or loaded from the cache: {metrics['perf/compilations']:,.0f}, "
        f"{metrics['perf/compilation_s']:.1f} s; {metrics['perf/recompilations']:.0f} of them in the middle of training",
    ]
    return "\n".join(lines)


class Watch:
    """Counts in this process between its entry and its exit: `with Watch() as watch: ...`."""

    def __init__(self) -> None:
        self.compilations: list[Compilation] = []
        self.pauses = 0
        self.pause_s = 0.0
        self._steady = False
        self._began = 0.0

    def __enter__(self) -> "Watch":
        gc.callbacks.append(self._collected)
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._collected)
        jax.monitoring.unregister_event_duration_listener(self._compiled)

    @contextmanager
    def steady(self, yes: bool) -> Iterator[None]:
        """While in here (if `yes`) nothing should be compiled any more; what is counts as a recompilation."""
        self._steady = yes
        try:
            yield
        finally:
            self._steady = False

    def recompiled(self) -> list[Compilation]:
        """The compilations that interrupted a steady step, oldest first."""
        return [one for one in self.compilations if one.again]

    def metrics(self) -> dict[str, float]:
        """Memory as it is now, and everything counted so far; bytes and seconds are in the names, the rest are counts.

        The memory of the device only where its runtime tells it (see `measure.device_memory`); on CPU that of the process
        is the device's, too.
        """
        live = psutil.Process().memory_info().rss
        return {
            **device_memory(),
            "memory/process_live_bytes": float(live),
            "memory/process_peak_bytes": float(max(live, peak_rss_bytes())),
            "perf/gc_pauses": float(self.pauses),
            "perf/gc_pause_s": self.pause_s,
            "perf/compilations": float(len(self.compilations)),
            "perf/compilation_s": sum(one.seconds for one in self.compilations),
            "perf/recompilations": float(len(self.recompiled())),
        }

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.pauses += 1
            self.pause_s += time.perf_counter() - self._began

    def _compiled(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == _COMPILED:
            self.compilations.append(Compilation(str(kwargs.get("fun_name", "?")), duration_secs, self._steady))
