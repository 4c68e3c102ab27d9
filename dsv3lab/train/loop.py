"""The training loop: resumes, steps, reports, saves, and ends at a token budget."""

import fcntl
import functools as ft
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.config import ConfigError, ModelConfig, RunConfig, TrainConfig, plain, runs_dir
from dsv3lab.config.text import clock
from dsv3lab.measure import matmul_peak
from dsv3lab.model import DeepSeek, Execution
from dsv3lab.parallel import make_execution
from dsv3lab.plan import flops_per_token
from dsv3lab.train import checkpoint, validation
from dsv3lab.train.metrics import Clock, of_report
from dsv3lab.train.reports import Reports
from dsv3lab.train.step import TrainState, train_step

Report = Callable[[dict[str, float], int], None]
SHOWN_EVERY_S = 10.0
NONFINITE = "train/nonfinite_steps"


class Preempted(Exception):
    """The process was asked to stop by a signal; the state is saved and the same call continues."""


@dataclass(frozen=True)
class FitResult:
    """How a call of `fit` ended.

    state: where training stands; the model is `state.model`.
    steps: optimizer steps done since the beginning of the run.
    resumed_from: step of the checkpoint that the call continued from; 0 for a fresh start.
    finished: whether the token budget is spent (False after `stop_after`).
    checkpoint: folder of the last checkpoint.
    last: the newest value of each metric that the run has reported, also by processes that were killed.
    """

    state: TrainState
    steps: int
    resumed_from: int
    finished: bool
    checkpoint: Path
    last: dict[str, float]


def fit(
    config: RunConfig,
    dataset: Any,
    directory: Path,
    *,
    report: Report,
    progress: Callable[[str], None] = print,
    stop_after: int | None = None,
    stop_on: Sequence[signal.Signals] = (signal.SIGTERM,),
) -> FitResult:
    """Train until the token budget is spent, from the newest checkpoint in `directory` if there is one.

    A run that was killed and continued ends with the same bits as one that was not, on the same machine and versions.
    `report` always sees the whole run: first what was reported up to the checkpoint, by whichever process, then the
    steps that are run now. `perf/*` describe the process that reported them. Every report holds
    `train/nonfinite_steps`: the steps of the whole run whose objective or gradient norm was NaN or infinite, those
    between reports included; NaN if the reports that belong to the checkpoint are missing, so that nobody can know.

    Args:
        config: the whole run; `model`, `train`, `data` and `precision` determine the weights.
        dataset: a `dsv3lab.data.Dataset`: `batch_at`, `validation`, `digest`, `domains`.
        directory: where this run's checkpoints and reports (`metrics.jsonl`) live; one process at a time.
        report: receives metrics and the number of steps done.
        progress: receives one line every few seconds.
        stop_after: save and return after this many steps of the run, counted from its beginning.
        stop_on: signals after which the state is saved; in a notebook SIGINT stays an interrupted cell.

    Raises:
        Preempted: after a signal of `stop_on` in the main thread, once the state is saved.
        CheckpointError: if the newest checkpoint or the file of reports is damaged.
        ConfigError: if the checkpoint belongs to another configuration or other data, or the directory is in use.
    """
    directory.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    with _alone(directory), _stop_on(stop_on) as stop:
        return _Run(config, dataset, directory, report=report, progress=progress, stop=stop).until(stop_after)


def execution_of(config: RunConfig) -> Execution:
    """The execution on one device with the run's number formats, dropouts, rematerialisation and scanned layers."""
    train = config.train
    options: Any = {"dropout": train.dropout, "remat": train.remat, "scan": train.scan_layers}
    return make_execution(config.parallel, precision=config.precision, **options)


def identity(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """What two runs must share so that one can continue the other: everything that the weights depend on."""
    train = plain(config.train)
    for key in ("log_interval", "eval_interval", "eval_windows", "checkpoint"):  # seen, not trained on
        del train[key]
    return {
        "model": plain(config.model),
        "train": train,
        "data": plain(config.data),
        "precision": plain(config.precision),
        "data_digest": data_digest,
    }


def use_compilation_cache() -> None:
    """Keep compiled programs in `$JAX_COMPILATION_CACHE_DIR`, or else below the runs folder."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(runs_dir() / "cache" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@ft.lru_cache(maxsize=4)
def _programs(
    model: ModelConfig, train: TrainConfig, *, length: int, execution: Execution, eval_batch: int
) -> tuple[Any, Any]:
    """The training step and the validation losses, compiled ahead and kept for the next run of this process.

    Compiled ahead, so that compilation is no part of any step's time.
    """
    state = TrainState.abstract(model, train, sequence_length=length)

    def step(state: TrainState, windows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(state, windows, config=train, sequence_length=length, execution=execution)

    def losses(model: DeepSeek, windows: jax.Array) -> jax.Array:
        return validation.window_losses(model, windows, chunk=train.loss.vocab_chunk, execution=execution)

    def windows(batch: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)

    return (
        jax.jit(step, donate_argnums=0).lower(state, windows(train.batch_size)).compile(),
        jax.jit(losses).lower(state.model, windows(eval_batch)).compile(),
    )


class _Run:
    """One call of `fit`: the pieces that stay the same from step to step."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Any,
        directory: Path,
        *,
        report: Report,
        progress: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.config, self.train, self.dataset, self.directory = config, config.train, dataset, directory
        self.report, self.progress, self.stop = report, progress, stop
        self.length = config.data.sequence_length
        self.total = self.train.steps(self.length)
        self.identity = identity(config, dataset.digest)
        self.last: dict[str, float] = {}

        checkpoint.clean(directory)
        abstract = TrainState.abstract(config.model, self.train, sequence_length=self.length)
        restored = checkpoint.restore(directory, abstract, identity=self.identity)
        self.resumed_from = 0 if restored is None else int(restored.step)
        self.state = restored or TrainState.init(config.model, self.train, sequence_length=self.length)
        self.done = self.resumed_from
        self.reports = Reports(directory)
        try:
            self.earlier = self.reports.keep(-1 if restored is None else self.done)
        except ValueError as error:
            raise checkpoint.CheckpointError(str(error)) from None

    def until(self, stop_after: int | None) -> FitResult:
        """Step to the end of the budget, to `stop_after` or to a signal, then save."""
        end = self.total if stop_after is None else min(self.total, stop_after)
        self._replay()
        if self.resumed_from:
            self.progress(f"continuing from the checkpoint of step {self.resumed_from}/{self.total}")
        if self.done < end and not self.stop.is_set():
            self._prepare()
        if self.done < end and not self.stop.is_set():  # a signal during the compilation is seen only after it
            with ThreadPoolExecutor(1, thread_name_prefix="batches") as ahead:
                self._steps(end, ahead)
        folder = self._save()
        if self.stop.is_set() and self.done < end:
            raise Preempted(f"stopped by a signal after step {self.done}/{self.total}; saved in {folder}, run again")
        return FitResult(
            state=self.state,
            steps=self.done,
            resumed_from=self.resumed_from,
            finished=self.done >= self.total,
            checkpoint=folder,
            last=self.last,
        )

    def _replay(self) -> None:
        """Report again what was reported up to the checkpoint, and go on counting from there."""
        for step, metrics in self.earlier:
            self.last |= metrics
            self.report(metrics, step)
        self.reported = self.earlier[-1][0] if self.earlier else -1
        known = self.reported == self.done  # every checkpoint has a report of its step, see `_save`
        counted = self.last.get(NONFINITE, float("nan")) if known else float("nan")
        self.nonfinite = counted if self.resumed_from else 0.0

    def _prepare(self) -> None:
        """Compile, choose the validation windows, and measure this process's roof."""
        start = time.perf_counter()
        self.step, self.validate = _programs(
            self.config.model,
            self.train,
            length=self.length,
            execution=execution_of(self.config),
            eval_batch=self.config.eval.batch_size,
        )
        compile_s = time.perf_counter() - start
        self.weights = {name: domain.weight for name, domain in self.config.data.domains.items()}
        self.held_out = validation.sample(self.dataset, weights=self.weights, count=self.train.eval_windows)
        self.clock = Clock(
            tokens_per_step=self.train.batch_size * self.length,
            flops_per_token=flops_per_token(self.config.model, sequence_length=self.length, causal=True),
            peak_flops=matmul_peak(),
        )
        self._report({"train/compile_s": compile_s, "perf/matmul_peak_flops": self.clock.peak_flops})

    def _steps(self, end: int, ahead: ThreadPoolExecutor) -> None:
        batch = ahead.submit(self._batch, self.done)
        shown = started = time.perf_counter()
        first = self.done
        while self.done < end and not self.stop.is_set():
            asked = time.perf_counter()
            windows = batch.result()
            begun = time.perf_counter()
            self.state, metrics = self.step(self.state, windows)
            batch = ahead.submit(self._batch, self.done + 1)  # prepared while the device computes
            jax.block_until_ready((self.state, metrics))
            now = time.perf_counter()
            self.clock.add(step_s=now - asked, wait_s=begun - asked)
            self.done += 1
            first_bad = self._count_nonfinite(metrics)
            self._after_step(metrics, last=self.done == end, report=first_bad)
            if now - shown > SHOWN_EVERY_S or self.done == end:
                shown = now
                self._show(float(metrics["loss"]), elapsed=now - started, rate=(self.done - first) / (now - started))

    def _count_nonfinite(self, metrics: dict[str, jax.Array]) -> bool:
        """Count a step whose objective or gradient norm is not finite; for the run's first one, say where it began."""
        watched = ("loss", "mtp_loss", "balance_loss", "total", "grad_norm")
        values = dict(zip(watched, map(float, jax.device_get([metrics[name] for name in watched])), strict=True))
        if np.isfinite((values["total"], values["grad_norm"])).all():
            return False
        self.nonfinite += 1
        if self.nonfinite == 1:
            bad = [name for name, value in values.items() if not np.isfinite(value)]
            side = "the backward pass, the losses are finite" if bad == ["grad_norm"] else "the forward pass"
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.progress(f"step {self.done}: not finite: {', '.join(bad)}; it began in {side} ({shown})")
        return self.nonfinite == 1

    def _after_step(self, metrics: dict[str, jax.Array], *, last: bool, report: bool) -> None:
        if last:  # other load may have slowed the first measurement: the roof is the higher of the two
            self.clock.peak_flops = max(self.clock.peak_flops, matmul_peak())
        if last or report or self.done % self.train.log_interval == 0:
            tokens = self.done * self.clock.tokens_per_step
            self._report({**of_report(metrics), "train/tokens": float(tokens), **self.clock.metrics()})
        if last or self.done % self.train.eval_interval == 0:
            self._report(self._validation())
        if self.done % self.train.checkpoint.interval == 0 and not last:
            self._save()

    def _validation(self) -> dict[str, float]:
        losses = {}
        for domain, windows in self.held_out.items():
            parts = validation.batches(windows, self.config.eval.batch_size)
            each = [np.asarray(self.validate(self.state.model, part))[:count] for part, count in parts]
            losses[domain] = float(np.mean(np.concatenate(each)))
        loss = validation.mean_loss(losses, self.weights)
        by_domain = {f"validation/loss/{domain}": value for domain, value in losses.items()}
        return {"validation/loss": loss, "validation/perplexity": float(np.exp(loss)), **by_domain}

    def _batch(self, step: int) -> jax.Array:
        return jnp.asarray(self.dataset.batch_at(step, batch_size=self.train.batch_size))

    def _report(self, metrics: dict[str, float]) -> None:
        metrics = {**metrics, NONFINITE: self.nonfinite}
        self.last |= metrics
        self.reported = self.done
        self.reports.add(self.done, metrics)
        self.report(metrics, self.done)

    def _show(self, loss: float, *, elapsed: float, rate: float) -> None:
        left = (self.total - self.done) / rate
        self.progress(
            f"step {self.done}/{self.total}  loss {loss:.4f}  {rate * self.clock.tokens_per_step:,.0f} tokens/s  "
            f"elapsed {clock(elapsed)}  ETA {clock(left)}"
        )

    def _save(self) -> Path:
        if self.reported < self.done:
            self._report({})  # the count, for the process that continues from here
        self.reports.flush()
        return checkpoint.save(self.directory, self.state, identity=self.identity, keep=self.train.checkpoint.keep)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when the process dies, however it dies."""
    path = directory / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{directory}: another process is training here; wait for it or end it") from None
        yield


@contextmanager
def _stop_on(signals: Sequence[signal.Signals]) -> Iterator[threading.Event]:
    """An event that the signals set, in the main thread; elsewhere Python allows no handler and it stays unset."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
