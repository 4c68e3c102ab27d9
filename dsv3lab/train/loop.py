"""The training loop: resumes, steps, reports, saves, and ends at a token budget."""

import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.config import ConfigError, RunConfig, plain, runs_dir
from dsv3lab.config.text import clock
from dsv3lab.measure import matmul_peak
from dsv3lab.model import DeepSeek, Execution
from dsv3lab.parallel import make_execution
from dsv3lab.plan import flops_per_token
from dsv3lab.train import checkpoint, debug, guard, micro_batch, programs, validation
from dsv3lab.train.metrics import Clock, of_report
from dsv3lab.train.reports import Reports
from dsv3lab.train.step import TrainState, dropout_key
from dsv3lab.train.watch import Watch

Report = Callable[[dict[str, float], int], None]
SHOWN_EVERY_S = 10.0
WARM_STEPS = 2
"""Steps of a process after which nothing should be compiled any more."""

FEWER_WEIGHTS = "take a smaller model, e.g. lower model.num_hidden_layers, or set train.optimizer.moments=bfloat16"


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
    config: of the run, with the micro-batch that was found in place of `auto`.
    """

    state: TrainState
    steps: int
    resumed_from: int
    finished: bool
    checkpoint: Path
    last: dict[str, float]
    config: RunConfig


def fit(
    config: RunConfig,
    dataset: Any,
    directory: Path,
    *,
    report: Report,
    progress: Callable[[str], None] = print,
    stop_after: int | None = None,
    stop_on: Sequence[signal.Signals] = (signal.SIGTERM,),
    nan_at: Sequence[int] = (),
) -> FitResult:
    """Train until the token budget is spent, from the newest checkpoint in `directory` if there is one.

    A run that was killed and continued ends with the same bits as one that was not, on the same machine and versions.
    `report` always sees the whole run: first what was reported up to the checkpoint, by whichever process, then the
    steps that are run now. `perf/*` and `memory/*` describe the process that reported them. Every report holds
    `train/nonfinite_steps`: the steps of the whole run whose objective or gradient norm was NaN or infinite, those
    between reports included, whose updates were skipped; NaN if the reports that belong to the checkpoint are missing,
    so that nobody can know; and `train/spikes`, see `guard.Health`.

    With `config.debug` the steps run without jit from the newest checkpoint on, the first one that is not finite ends
    the run with the name of the array in which that began, and no checkpoint is written: the bits are not those of the
    compiled step.

    Args:
        config: the whole run; `model`, `train`, `data` and `precision` determine the weights.
        dataset: a `dsv3lab.data.Dataset`: `batch_at`, `validation`, `digest`, `domains`.
        directory: where this run's checkpoints and reports (`metrics.jsonl`) live; one process at a time.
        report: receives metrics and the number of steps done.
        progress: receives one line every few seconds.
        stop_after: save and return after this many steps of the run, counted from its beginning.
        stop_on: signals after which the state is saved; in a notebook SIGINT stays an interrupted cell.
        nan_at: steps (from 1) whose gradient is made NaN on purpose, to see that the run gets over them.

    Raises:
        Preempted: after a signal of `stop_on` in the main thread, once the state is saved.
        CheckpointError: if the newest checkpoint or the file of reports is damaged.
        ConfigError: if the checkpoint belongs to another configuration or other data, or the directory is in use.
        Diverged: if too many steps in a row had no finite gradient, or at the first one with `config.debug`.
        OutOfMemory: if weights, a step or the validation did not fit into the device's memory, or its compilation.
    """
    directory.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    log = debug.compile_log(directory / "compile.log") if config.debug else nullcontext()
    if config.debug:
        progress(f"debug=true: steps without jit; what JAX compiles is written to {directory / 'compile.log'}")
    with _alone(directory), _stop_on(stop_on) as stop, Watch() as watch, log:
        run = _Run(
            config, dataset, directory, report=report, progress=progress, stop=stop, watch=watch, nan_at=tuple(nan_at)
        )
        return run.until(stop_after)


def execution_of(config: RunConfig) -> Execution:
    """The execution on one device with the run's number formats, dropouts, rematerialisation and scanned layers."""
    train = config.train
    options: Any = {"dropout": train.dropout, "remat": train.remat, "scan": train.scan_layers}
    return make_execution(config.parallel, precision=config.precision, **options)


def identity(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """What two runs must share so that one can continue the other: everything that the weights depend on."""
    train = plain(config.train)
    for key in ("log_interval", "eval_interval", "eval_windows", "checkpoint", "stability"):  # seen, not trained on
        del train[key]
    train["micro_batch"] = train["micro_batch"] or train["batch_size"]
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


def _programs(config: RunConfig, *, nan_at: tuple[int, ...]) -> tuple[Any, Any]:
    """The training step, for every batch size of the run, and its validation losses."""
    shared: Any = {
        "length": config.data.sequence_length,
        "execution": execution_of(config),
        "debugging": config.debug,
    }
    train, batch = config.train, config.eval.batch_size
    with _validates(config):
        losses = programs.window_losses(config.model, chunk=train.loss.vocab_chunk, batch=batch, **shared)
    sizes = train.ramp(config.data.sequence_length).sizes
    steps = {n: programs.step(config.model, train, batch_size=n, nan_at=nan_at, **shared) for n in sizes}
    return lambda state, windows: steps[windows.shape[0]](state, windows), losses


def _validates(config: RunConfig) -> AbstractContextManager[None]:
    return micro_batch.in_memory("validation", then=f"lower eval.batch_size (now {config.eval.batch_size})")


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
        watch: Watch,
        nan_at: tuple[int, ...],
    ) -> None:
        self.began = start = time.perf_counter()
        checkpoint.clean(directory)
        bound = checkpoint.newest_identity(directory) if config.train.micro_batch == "auto" else {}
        config, self.choice = programs.settled(config, bound, execution=execution_of(config), nan_at=nan_at)
        self.trials_s = time.perf_counter() - start
        self.config, self.train, self.dataset, self.directory = config, config.train, dataset, directory
        self.report, self.progress, self.stop, self.watch, self.nan_at = report, progress, stop, watch, nan_at
        self.length = config.data.sequence_length
        self.ramp = self.train.ramp(self.length)
        self.total = self.ramp.steps
        self.identity = identity(config, dataset.digest) | ({"nan_at": nan_at} if nan_at else {})
        self.last: dict[str, float] = {}

        abstract = TrainState.abstract(config.model, self.train, sequence_length=self.length)
        with micro_batch.in_memory("weights and optimizer state", then=FEWER_WEIGHTS):
            restored = checkpoint.restore(directory, abstract, identity=self.identity)
            self.state = restored or TrainState.init(config.model, self.train, sequence_length=self.length)
        self.resumed_from = self.done = 0 if restored is None else int(restored.step)
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
            saved = "debug=true saves nothing" if self.config.debug else f"saved in {folder}"
            raise Preempted(f"stopped by a signal after step {self.done}/{self.total}; {saved}, run again")
        return FitResult(
            state=self.state,
            steps=self.done,
            resumed_from=self.resumed_from,
            finished=self.done >= self.total,
            checkpoint=folder,
            last=self.last,
            config=self.config,
        )

    def _replay(self) -> None:
        """Report again what was reported up to the checkpoint, and go on counting from there."""
        for step, metrics in self.earlier:
            self.last |= metrics
            self.report(metrics, step)
        self.reported = self.earlier[-1][0] if self.earlier else -1
        known = self.reported == self.done  # every checkpoint has a report of its step, see `_save`
        counts = [
            self.last.get(name, float("nan")) if known else float("nan") for name in (guard.NONFINITE, guard.SPIKES)
        ]
        nonfinite, spikes = counts if self.resumed_from else (0.0, 0.0)
        self.health = guard.Health(self.train.stability, nonfinite=nonfinite, spikes=spikes)
        for _, metrics in self.earlier:
            self.health.reported(metrics)

    def _prepare(self) -> None:
        """Compile, choose the validation windows, and measure this process's roof."""
        for line in self.choice.table() if self.choice else ():
            self.progress(line)
        start = time.perf_counter()
        with self._fits("compiling the step"):
            self.step, self.validate = _programs(self.config, nan_at=self.nan_at)
        compile_s = self.trials_s + time.perf_counter() - start
        self.weights = {name: domain.weight for name, domain in self.config.data.domains.items()}
        self.held_out = validation.sample(self.dataset, weights=self.weights, count=self.train.eval_windows)
        self.clock = Clock(
            flops_per_token=flops_per_token(self.config.model, sequence_length=self.length, causal=True),
            peak_flops=matmul_peak(),
            began=self.began,
        )
        size: Any = self.train.micro_batch
        self._report(
            {
                "train/compile_s": compile_s,
                "train/micro_batch": float(size),
                "perf/matmul_peak_flops": self.clock.peak_flops,
                **({"memory/step_bytes": float(self.choice.tried[-1].bytes or 0)} if self.choice else {}),
            }
        )

    def _steps(self, end: int, ahead: ThreadPoolExecutor) -> None:
        batch = ahead.submit(self._batch, self.done)
        shown = started = time.perf_counter()
        first, self.seen = self.done, 0
        while self.done < end and not self.stop.is_set():
            asked = time.perf_counter()
            windows = batch.result()
            begun = time.perf_counter()
            before = self.state.model if self.config.debug else None  # the compiled step takes its buffers
            steady = self.done - first >= WARM_STEPS and not self.config.debug
            with self.watch.steady(steady), self._fits(f"step {self.done + 1}"):
                self.state, metrics = self.step(self.state, windows)
                batch = ahead.submit(self._batch, self.done + 1)  # prepared while the device computes
                jax.block_until_ready((self.state, metrics))
            now = time.perf_counter()
            self.clock.add(step_s=now - asked, wait_s=begun - asked, tokens=windows.shape[0] * self.length)
            self.done += 1
            self._judge(metrics, windows, before)
            self._after_step(metrics, last=self.done == end)
            if now - shown > SHOWN_EVERY_S or self.done == end:
                shown = now
                self._show(float(metrics["loss"]), since=first, elapsed=now - started)

    def _fits(self, doing: str) -> AbstractContextManager[None]:
        lower = f"lower train.micro_batch (now {self.train.micro_batch}; auto finds the largest that fits), or set "
        return micro_batch.in_memory(doing, then=f"{lower}train.remat=full")

    def _judge(self, metrics: dict[str, jax.Array], windows: jax.Array, before: DeepSeek | None) -> None:
        """Say what broke in this step; with `debug` where, and no further."""
        skipped = self.health.step(jax.device_get({name: metrics[name] for name in guard.WATCHED}), self.done)
        if skipped and before is not None:
            key, execution = dropout_key(self.train, jnp.int32(self.done - 1), 0), execution_of(self.config)
            where = debug.first_nonfinite(before, windows, config=self.train, key=key, execution=execution)
            loss = "no loss before it" if self.health.loss is None else f"the loss before it was {self.health.loss:.4f}"
            raise guard.Diverged(f"step {self.done}: the first non-finite value is in {where}; {loss}")
        if skipped:
            self.progress(skipped)
            self.health.check(self.done)
        for one in self.watch.recompiled()[self.seen :]:
            self.progress(f"step {self.done}: {one.name} was compiled in the middle of training, {one.seconds:.1f} s")
        self.seen = len(self.watch.recompiled())

    def _after_step(self, metrics: dict[str, jax.Array], *, last: bool) -> None:
        if last:  # other load may have slowed the first measurement: the roof is the higher of the two
            self.clock.peak_flops = max(self.clock.peak_flops, matmul_peak())
        if last or self.done % self.train.log_interval == 0:
            position = {
                "train/tokens": float(self.ramp.tokens_before(self.done)),
                "train/batch_size": float(self.ramp.batch_size(self.done - 1)),
            }
            self._report({**of_report(metrics), **position, **self.clock.metrics(), **self.watch.metrics()})
        if last or self.done % self.train.eval_interval == 0:
            self._report(self._validation())
        if self.done % self.train.checkpoint.interval == 0 and not last:
            self._save()

    def _validation(self) -> dict[str, float]:
        losses = {}
        for domain, windows in self.held_out.items():
            parts = validation.batches(windows, self.config.eval.batch_size)
            with _validates(self.config):
                each = [np.asarray(self.validate(self.state.model, part))[:count] for part, count in parts]
            losses[domain] = float(np.mean(np.concatenate(each)))
        loss = validation.mean_loss(losses, self.weights)
        by_domain = {f"validation/loss/{domain}": value for domain, value in losses.items()}
        return {"validation/loss": loss, "validation/perplexity": float(np.exp(loss)), **by_domain}

    def _batch(self, step: int) -> jax.Array:
        return jnp.asarray(self.dataset.batch_at(step, batch_size=self.ramp))

    def _report(self, metrics: dict[str, float]) -> None:
        self.health.reported(metrics)
        metrics = {**metrics, **self.health.metrics()}
        self.last |= metrics
        self.reported = self.done
        self.reports.add(self.done, metrics)
        self.report(metrics, self.done)

    def _show(self, loss: float, *, since: int, elapsed: float) -> None:
        before, now, end = (self.ramp.tokens_before(step) for step in (since, self.done, self.total))
        rate = (now - before) / elapsed
        self.progress(
            f"step {self.done}/{self.total}  loss {loss:.4f}  {rate:,.0f} tokens/s  "
            f"elapsed {clock(elapsed)}  ETA {clock((end - now) / rate)}"
        )

    def _save(self) -> Path:
        if self.reported < self.done:
            self._report({})  # the count, for the process that continues from here
        self.reports.flush()
        if self.config.debug:
            return self.directory
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
