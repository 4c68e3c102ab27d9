"""Where the files of a run are shown besides: MLflow always, TensorBoard and Weights & Biases if the configuration asks.

The run folder is the truth, and each tracker is a `Projection` of it. The pipeline's process feeds all of them while a
stage runs (`Tracker`); `dsv3lab sync` runs the same code over an old folder.
"""

import importlib.util
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dsv3lab.config import ConfigError, RunConfig, nearest
from dsv3lab.workbook.record import PhaseRecord, StageOutcome
from dsv3lab.workbook.trackers.folder import now

MLFLOW = "mlflow"
NAMES = (MLFLOW, "tensorboard", "wandb")


class Projection(Protocol):
    """One tracker's view of one run folder. Every method may be called again: it completes, and duplicates nothing."""

    def open_phase(self, *, started: int | None = None) -> Any:
        """Begin, or go on with, what is shown of the phase."""

    def open_stage(self, stage: str, *, started: int | None = None) -> Any:
        """Begin what is shown of a stage."""

    def push(self, stage: str) -> int:
        """Pass on the lines of the stage's `metrics.jsonl` that are new; returns how many points."""
        ...

    def close_stage(self, outcome: StageOutcome, *, ended: int | None = None) -> None:
        """The stage's last metrics, its gates, its figures."""

    def close_phase(self, record: PhaseRecord, *, promoted: bool, ended: int | None = None) -> None:
        """Everything that the record says."""

    def kill(self) -> None:
        """What a pipeline without a record left: it was killed."""

    @property
    def complete(self) -> bool:
        """Whether this folder was shown to its end, and still is."""
        ...


def require(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or whose package is not installed, before anything runs.

    Raises:
        ConfigError: with the nearest name, or the command that installs the extra.
    """
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"no tracker '{name}'{nearest(name, NAMES)}")
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"the tracker '{name}' is not installed: pip install -c constraints.txt -e '.[{name}]'")


def wanted(config: RunConfig) -> tuple[str, ...]:
    """The trackers of a configuration, MLflow first."""
    return tuple(dict.fromkeys((MLFLOW, *config.tracking.also)))


def project(name: str, folder: Path, *, config: RunConfig | None, runs: Path) -> Projection:
    """The projection of a run folder by the tracker `name`; only MLflow needs the configuration."""
    if name == "tensorboard":
        from dsv3lab.workbook.trackers.tensorboard import TensorBoard

        return TensorBoard(folder, runs=runs)
    if name == "wandb":
        from dsv3lab.workbook.trackers.wandb import WandB

        return WandB(folder, runs=runs)
    from dsv3lab.workbook.compose import load
    from dsv3lab.workbook.tracking import Projection as MLflow

    return MLflow(folder, config=config or load(folder / "config.resolved.yaml"), runs=runs)


def sentence(error: Exception) -> str:
    """An exception of a store in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


class Tracker(threading.Thread):
    """Feeds the projections while the phase runs, in a thread that no failure of a store can stop the run from.

    The trackers are imported here, after the pipeline has said what it does. When one fails, `problem` says it in one
    sentence and nothing more is passed to it; `dsv3lab sync` does it later.
    """

    def __init__(self, folder: Path, *, config: RunConfig, runs: Path) -> None:
        super().__init__(name="tracking", daemon=True)
        self._folder, self._config, self._runs = folder, config, runs
        self._began = now()
        # The stage that is at work behind an order (`None`: the last order), and the order.
        self._orders: queue.Queue[tuple[str | None, Callable[[Projection], Any]]] = queue.Queue()
        self._fed: dict[str, Projection] = {}
        self._problems: list[str] = []

    @property
    def problem(self) -> str:
        """What became of trackers that failed; empty if none did."""
        return "; ".join(self._problems)

    def stage_started(self, stage: str) -> None:
        """From now on the stage's metrics are passed on."""
        started = now()
        self._orders.put((stage, lambda one: one.open_stage(stage, started=started)))

    def stage_ended(self, outcome: StageOutcome) -> None:
        """Report how a stage ended."""
        ended = now()
        self._orders.put(("", lambda one: one.close_stage(outcome, ended=ended)))

    def close(self, record: PhaseRecord | None, *, promoted: bool, seconds: float) -> str:
        """Report the phase and wait for it; returns the problem, if there was one."""
        ended = now()

        def end(one: Projection) -> None:
            one.kill() if record is None else one.close_phase(record, promoted=promoted, ended=ended)

        self._orders.put((None, end))
        self.join(seconds)
        if self.is_alive() and not self._problems:
            self._problems.append(f"the store did not answer within {seconds:.0f} s")
        return self.problem

    def run(self) -> None:
        """The thread: orders as they come, new metrics every `tracking.flush_s` seconds."""
        self._each(wanted(self._config), self._open)
        active: str | None = ""
        while self._fed:
            try:
                active, order = self._orders.get(timeout=self._config.tracking.flush_s)
            except queue.Empty:
                if active:
                    self._all(lambda one, stage=active: one.push(stage))
                continue
            self._all(order)
            if active is None:
                return

    def _all(self, act: Callable[[Projection], Any]) -> None:
        """`act` on every tracker that has not failed."""
        self._each(tuple(self._fed), lambda name: act(self._fed[name]))

    def _each(self, names: Sequence[str], act: Callable[[str], Any]) -> None:
        """`act` for each name; a tracker that fails gets nothing more."""
        for name in names:
            try:
                act(name)
            except Exception as error:  # whatever the store, its driver or the disk raises: the run goes on
                self._fed.pop(name, None)
                self._problems.append(f"{name}: {sentence(error)}")

    def _open(self, name: str) -> None:
        projection = project(name, self._folder, config=self._config, runs=self._runs)
        if name == MLFLOW:
            projection.close_others()  # type: ignore[attr-defined]  # only MLflow shows runs as running
        projection.open_phase(started=self._began)
        self._fed[name] = projection
