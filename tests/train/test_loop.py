"""The loop: what it reports, and that stopping, SIGTERM and going on change no bit."""

import fcntl
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from dsv3lab import train
from dsv3lab.config import ConfigError, Ramp, plain
from dsv3lab.train import __main__ as command
from dsv3lab.train import checkpoint, guard, loop, micro_batch, programs, reports
from tests import builders

pytestmark = pytest.mark.limit(120)  # the first test compiles the step; the others find it compiled
# The smallest vocabulary that a configuration file may ask for, since the command reads one.
MODEL = builders.model_config(num_hidden_layers=2, first_k_dense_replace=0, vocab_size=257)
CONFIG = builders.run_config(model=MODEL)
STEPS = 6
PER_STEP = {
    *("train/loss", "train/mtp_loss", "train/balance_loss", "train/total", "train/grad_norm", "train/lr"),
    *("train/maxvio", "train/maxvio_worst_layer", "train/dead_experts", "train/tokens"),
    *(f"train/load_{name}/moe_{layer}" for name in ("lowest", "highest") for layer in range(3)),
    *("perf/tokens_per_s", "perf/step_time_p50_s", "perf/step_time_p95_s", "perf/data_wait_fraction", "perf/goodput"),
    *("perf/matmul_peak_flops", "perf/peak_fraction", "memory/process_live_bytes", "memory/process_peak_bytes"),
    *("perf/gc_pauses", "perf/gc_pause_s", "perf/compilations", "perf/compilation_s", "perf/recompilations"),
}
COMPUTED = ("train/loss", "train/grad_norm", "train/maxvio", "train/lr", "validation/loss")
AT_INTERVAL = {"validation/loss", "validation/perplexity", "validation/loss/prose", "validation/loss/code"}


@dataclass
class Recorder:
    """Keeps what `fit` reports, and may do something at each report."""

    points: list[tuple[int, dict[str, float]]]
    then: Callable[[int], None] = lambda step: None

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self.points.append((step, metrics))
        self.then(step)

    def of(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.points if name in metrics}


class Untouched(builders.FakeDataset):
    """A dataset of which no training batch may be drawn."""

    def batch_at(self, step: int, *, batch_size: int | Ramp) -> np.ndarray:
        assert step >= STEPS, f"batch {step} was drawn"
        return super().batch_at(step, batch_size=batch_size)


def sends(number: signal.Signals, *, at: int) -> Callable[[int], None]:
    """Sends this process a signal when the step is reported."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


def interrupt() -> None:
    raise KeyboardInterrupt


def fit(directory: Path, recorder: Recorder | None = None, **options) -> train.FitResult:  # noqa: ANN003
    recorder = recorder or Recorder([])
    options = {"config": CONFIG, "dataset": builders.FakeDataset(), "progress": lambda line: None, **options}
    return train.fit(options.pop("config"), options.pop("dataset"), directory, report=recorder, **options)


def assert_same(left: train.TrainState, right: train.TrainState) -> None:
    assert train.differing_elements(left, right) == 0
    assert int(left.step) == int(right.step) == STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[train.FitResult, Recorder, Path]:
    """A run that nothing interrupted."""
    directory, recorder = tmp_path_factory.mktemp("whole"), Recorder([])
    return fit(directory, recorder), recorder, directory


def test_it_reports_every_metric(whole: tuple[train.FitResult, Recorder, Path]) -> None:
    result, recorder, _ = whole
    assert result.finished and result.steps == STEPS and result.resumed_from == 0
    first = {"train/compile_s", "train/micro_batch", "perf/matmul_peak_flops", guard.NONFINITE, guard.SPIKES}
    assert set(recorder.points[0][1]) == first and recorder.of("train/micro_batch") == {0: 2}
    assert 0 < result.last["perf/goodput"] < 1
    assert result.last["perf/recompilations"] == 0 and result.last[guard.SPIKES] == 0
    for name in PER_STEP:
        assert set(recorder.of(name)) - {0} == set(range(1, STEPS + 1)), name
    for name in AT_INTERVAL:
        assert set(recorder.of(name)) == {3, 6}, name
    assert all(np.isfinite(value) for _, metrics in recorder.points for value in metrics.values())
    assert recorder.of("train/tokens")[STEPS] == STEPS * 4 * builders.SEQUENCE_LENGTH
    assert recorder.of("validation/perplexity")[6] == pytest.approx(np.exp(recorder.of("validation/loss")[6]))
    code, prose = recorder.of("validation/loss/code")[6], recorder.of("validation/loss/prose")[6]
    assert recorder.of("validation/loss")[6] == pytest.approx(0.75 * code + 0.25 * prose)
    assert recorder.of("train/loss")[STEPS] < recorder.of("train/loss")[1]  # it learns to count
    assert result.last["train/loss"] == recorder.of("train/loss")[STEPS]


def test_it_keeps_the_newest_checkpoints(whole: tuple[train.FitResult, Recorder, Path]) -> None:
    result, _, directory = whole
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["lock", "metrics.jsonl", "step_00000004", "step_00000006"]
    assert result.checkpoint == directory / "step_00000006"
    model = train.load_model(result.checkpoint, MODEL)
    assert train.differing_elements(model, result.state.model) == 0


def test_stopped_and_resumed_is_bitwise_the_same(whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path) -> None:
    first = fit(tmp_path, stop_after=3)
    assert not first.finished and first.steps == 3
    recorder = Recorder([])
    second = fit(tmp_path, recorder)
    assert second.resumed_from == 3 and second.finished
    assert_same(second.state, whole[0].state)
    for name in COMPUTED:
        assert recorder.of(name) == whole[1].of(name), name


def test_a_finished_run_is_not_trained_again_and_reports_what_it_did(
    whole: tuple[train.FitResult, Recorder, Path],
) -> None:
    """A process that dies between the last checkpoint and the end of its stage loses nothing."""
    recorder = Recorder([])
    again = fit(whole[2], recorder, dataset=Untouched())
    assert again.finished and again.resumed_from == STEPS
    assert recorder.points == whole[1].points and again.last == whole[0].last
    assert again.last.keys() >= PER_STEP | AT_INTERVAL
    assert_same(again.state, whole[0].state)


def test_killed_after_a_checkpoint_each_step_is_reported_once(
    whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path
) -> None:
    def die(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt  # as a kill: what was reported of step 5 is on the disk, its state is not

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Recorder([], die))
    assert reports.read(tmp_path)[-1][0] == 5
    with (tmp_path / reports.NAME).open("a") as file:
        file.write('{"step": 5, "met')  # killed in the middle of a line
    recorder = Recorder([])
    assert fit(tmp_path, recorder).resumed_from == 4
    assert reports.read(tmp_path) == recorder.points
    for name in COMPUTED:
        assert recorder.of(name) == whole[1].of(name), name
        assert sum(name in metrics for _, metrics in recorder.points) == len(recorder.of(name)), name


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled: dict[int, tuple[str, float]]) -> None:
    """Replace one metric of some steps, as a loss that overflows would."""
    original = loop._programs

    def programs(*arguments: Any, **options: Any) -> Any:
        step, losses = original(*arguments, **options)

        def wrapped(state: train.TrainState, windows: jax.Array) -> Any:
            number = int(state.step) + 1
            state, metrics = step(state, windows)
            name, value = spoiled.get(number, ("total", metrics["total"]))
            return state, {**metrics, name: jnp.asarray(value)}

        return wrapped, losses

    monkeypatch.setattr(loop, "_programs", programs)


def test_every_step_counts_whose_loss_or_gradient_is_not_finite_also_before_a_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {2: ("total", np.nan), 4: ("grad_norm", np.inf), 5: ("total", np.inf)})
    rarely = replace(CONFIG, train=replace(CONFIG.train, log_interval=100, eval_interval=100))

    def die(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    first = Recorder([], die)
    five = replace(rarely, train=replace(rarely.train, log_interval=5))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, first, config=five)
    assert first.of(guard.NONFINITE) == {0: 0, 2: 1, 4: 2, 5: 3}
    second = Recorder([])
    result = fit(tmp_path, second, config=rarely)
    assert result.resumed_from == 4 and result.last[guard.NONFINITE] == 3
    assert second.of(guard.NONFINITE) == {0: 0, 2: 1, 4: 2, 6: 3}


def test_a_nan_batch_is_passed_over_and_no_weight_changes_a_bit(tmp_path: Path) -> None:
    lines: list[str] = []
    before = fit(tmp_path, stop_after=3, nan_at=(4,))
    after = fit(tmp_path, stop_after=4, nan_at=(4,), progress=lines.append)
    assert train.differing_elements(before.state, after.state) == 1  # the step, which is the position in the data
    assert int(after.state.step) == 4 and after.last[guard.NONFINITE] == 1 and np.isnan(after.last["train/loss"])
    assert any(line.startswith("step 4: not finite: ") and "debug=true" in line for line in lines)
    with pytest.raises(ConfigError, match="nan_at: checkpoint .4., now None"):
        fit(tmp_path)
    last = fit(tmp_path, nan_at=(4,))
    assert last.finished and last.last[guard.NONFINITE] == 1 and np.isfinite(last.last["validation/loss"])
    assert train.differing_elements(last.state.model, after.state.model) > 0


def test_too_many_skipped_steps_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, {step: ("grad_norm", np.inf) for step in (1, 3, 4, 5)})
    with pytest.raises(
        train.Diverged, match="step 5: 3 steps in a row .* train.stability.skipped_in_a_row .*debug=true"
    ):
        fit(tmp_path)
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_a_spike_of_the_loss_is_counted_also_after_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, {3: ("loss", 99.0), 5: ("loss", 99.0)})
    first, second = Recorder([]), Recorder([])
    fit(tmp_path, first, stop_after=4)
    fit(tmp_path, second)
    assert first.of(guard.SPIKES) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
    assert second.of(guard.SPIKES) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2}


def test_the_micro_batch_is_found_once_and_kept_by_who_goes_on(
    whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(size: int) -> int:
        options = {"length": builders.SEQUENCE_LENGTH, "execution": train.execution_of(CONFIG)}
        found = micro_batch.step_bytes(
            lambda: programs.step(MODEL, replace(CONFIG.train, micro_batch=size), nan_at=(), debugging=False, **options)
        )
        assert found is not None
        return found

    assert need(2) < need(4)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda: int(need(2) / micro_batch.SHARE) + 1)
    auto, lines = replace(CONFIG, train=replace(CONFIG.train, micro_batch="auto")), []
    first = fit(tmp_path, config=auto, stop_after=3, progress=lines.append)
    assert first.config == CONFIG and first.last["memory/step_bytes"] == need(2)
    assert [line.split(":")[0] for line in lines[:3]] == [
        *("micro-batch     4", "micro-batch     2", "train.micro_batch=auto")
    ]
    monkeypatch.setattr(micro_batch, "free_bytes", lambda: 2**60)  # now the whole batch would fit
    second = fit(tmp_path, config=auto)
    assert second.resumed_from == 3 and second.last["train/micro_batch"] == 2
    assert_same(second.state, whole[0].state)


def test_a_step_that_does_not_fit_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")

    monkeypatch.setattr(loop, "_programs", lambda config, nan_at: (exhausted, exhausted))
    with pytest.raises(
        micro_batch.OutOfMemory, match=r"step 1: out of memory .*9 bytes.*lower train.micro_batch \(now 2;"
    ):
        fit(tmp_path)


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        (loop.TrainState, "init", "weights and optimizer state: out of memory .*lower model.num_hidden_layers"),
        (loop.checkpoint, "restore", "weights and optimizer state: out of memory .*moments=bfloat16"),
        (programs, "step", r"compiling the step: out of memory .*lower train.micro_batch \(now 2;"),
        (programs, "window_losses", r"validation: out of memory .*lower eval.batch_size \(now 2\)"),
    ],
)
def test_what_does_not_fit_before_the_first_step_says_what_to_lower(
    place: Any, name: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")

    monkeypatch.setattr(place, name, exhausted)
    with pytest.raises(micro_batch.OutOfMemory, match=words):
        fit(tmp_path)


def test_a_validation_that_does_not_fit_names_its_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    original = loop._programs
    monkeypatch.setattr(loop, "_programs", lambda config, nan_at: (original(config, nan_at=nan_at)[0], exhausted))
    with pytest.raises(micro_batch.OutOfMemory, match=r"validation: .*lower eval.batch_size \(now 2\)"):
        fit(tmp_path)


def test_debugging_names_where_it_broke_and_writes_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fit(tmp_path, stop_after=2)
    spoil(monkeypatch, {4: ("total", np.nan)})
    monkeypatch.setattr(loop.debug, "without_jit", jax.jit)  # the real thing takes seconds for a step
    monkeypatch.setattr(loop.debug, "first_nonfinite", lambda *a, **o: "layers[1] moe output")
    recorder, said = Recorder([]), []
    with pytest.raises(
        train.Diverged, match=r"step 4: the first non-finite value is in layers\[1\] moe output; the loss"
    ) as e:
        fit(tmp_path, recorder, config=replace(CONFIG, debug=True), progress=said.append)
    assert str(tmp_path / "compile.log") in said[0]
    assert str(e.value).endswith(f"the loss before it was {recorder.of('train/loss')[3]:.4f}")
    assert checkpoint.steps(tmp_path) == [2]
    assert "Compiling jit(step)" in (tmp_path / "compile.log").read_text()


@pytest.mark.parametrize(("name", "side"), [("total", "the forward pass"), ("grad_norm", "the backward pass")])
def test_a_step_that_is_not_finite_is_said_with_the_pass_it_began_in(
    name: str, side: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {3: (name, np.nan)})
    rarely = replace(CONFIG, train=replace(CONFIG.train, log_interval=100, eval_interval=100))
    recorder, said = Recorder([]), []
    fit(tmp_path, recorder, config=rarely, progress=said.append)
    assert recorder.of("train/nonfinite_steps")[STEPS] == 1
    (line,) = [line for line in said if "not finite" in line]
    assert line.startswith(f"step 3: not finite: {name}; it began in {side}")


def test_a_checkpoint_without_its_reports_does_not_count_as_clean(tmp_path: Path) -> None:
    fit(tmp_path, stop_after=3)
    (tmp_path / reports.NAME).unlink()
    assert np.isnan(fit(tmp_path).last[guard.NONFINITE])


def test_without_a_checkpoint_the_reports_begin_again(tmp_path: Path) -> None:
    with (tmp_path / reports.NAME).open("w") as file:
        file.write('{"step": 0, "metrics": {"train/loss": 1.0}}\n')
    fit(tmp_path, stop_after=1)
    assert [metrics.get("train/loss") for step, metrics in reports.read(tmp_path) if step == 0] == [None]


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    (tmp_path / reports.NAME).write_text('{"step": 1, "metrics": {}}\n{"step": 2\n')
    with pytest.raises(train.CheckpointError, match=r"metrics\.jsonl:2: not a report .*; delete this line"):
        fit(tmp_path)


def test_the_reports_of_a_stage_that_links_the_file_are_left_alone(
    whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path
) -> None:
    directory, link = tmp_path / "run", tmp_path / "linked"
    fit(directory, stop_after=3)
    os.link(directory / reports.NAME, link)
    before = link.read_bytes()
    fit(directory)
    assert link.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(train.Preempted, match="after step 3/6; saved in .*step_00000003, run again"):
        fit(tmp_path, Recorder([], sends(number, at=3)), stop_on=(number,))
    assert signal.getsignal(number) is before
    assert_same(fit(tmp_path).state, whole[0].state)


@pytest.mark.parametrize("moment", ["restoring", "compiling"])
def test_a_signal_before_the_first_step_ends_without_a_step(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    original = loop._programs

    def programs(*arguments: Any, **options: Any) -> Any:
        compiled.append(moment)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "_programs", programs)
    if moment == "restoring":
        monkeypatch.setattr(checkpoint, "clean", lambda directory: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(train.Preempted, match="after step 0/6"):
        fit(tmp_path, dataset=Untouched())
    assert compiled == ([] if moment == "restoring" else ["compiling"]) and checkpoint.steps(tmp_path) == [0]
    monkeypatch.undo()
    assert fit(tmp_path, stop_after=1).last[guard.NONFINITE] == 0


def test_in_a_notebook_an_interrupt_stays_an_interrupt(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, Recorder([], sends(signal.SIGINT, at=1)))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_change_that_weights_depend_on_is_refused_and_another_is_not(
    whole: tuple[train.FitResult, Recorder, Path],
) -> None:
    _, _, directory = whole
    other = replace(CONFIG, train=replace(CONFIG.train, seed=1))
    with pytest.raises(ConfigError, match="train.seed: checkpoint 0, now 1"):
        fit(directory, config=other)
    with pytest.raises(ConfigError, match="data_digest: checkpoint 'fake', now 'other'"):
        fit(directory, dataset=builders.FakeDataset(digest="other"))
    assert fit(directory, config=replace(CONFIG, train=replace(CONFIG.train, log_interval=2))).finished


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is training here"):
            fit(tmp_path)


def test_progress_says_step_loss_speed_and_time_left(
    whole: tuple[train.FitResult, Recorder, Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    fit(tmp_path, progress=lines.append)
    pattern = r"step 6/6  loss \d+\.\d{4}  [\d,]+ tokens/s  elapsed \d+:\d\d  ETA 0:00"
    assert re.fullmatch(pattern, lines[-1]), lines[-1]


@dataclass(frozen=True)
class Terminating(builders.FakeDataset):
    """Asks the process to stop when the batch of step 3 is drawn."""

    number: signal.Signals = signal.SIGTERM

    def batch_at(self, step: int, *, batch_size: int | Ramp) -> np.ndarray:
        if step == 3:
            os.kill(os.getpid(), self.number)
        return super().batch_at(step, batch_size=batch_size)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_75_then_with_0(
    whole: tuple[train.FitResult, Recorder, Path],
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(CONFIG)))
    arguments = ["--config", tmp_path / "config.yaml", "--data", tmp_path, "--directory", tmp_path / "run"]
    words = [str(argument) for argument in arguments]
    monkeypatch.setattr(command, "open_dataset", lambda folder: interrupt())
    assert command.main(words) == 75
    assert "before the training began" in capsys.readouterr().out
    monkeypatch.setattr(command, "open_dataset", lambda folder: Terminating(number=number))
    assert command.main(words) == 75
    assert "run again" in capsys.readouterr().out
    monkeypatch.setattr(command, "open_dataset", lambda folder: builders.FakeDataset())
    assert command.main(words) == 0
    assert_same(fit(tmp_path / "run").state, whole[0].state)
    monkeypatch.setattr(command, "open_dataset", lambda folder: builders.FakeDataset(digest="other"))
    assert command.main(words) == 2
    assert "data_digest" in capsys.readouterr().err
    (tmp_path / "run" / "step_00000006" / "meta.json").write_text("{}")
    assert command.main(words) == 3
    assert "meta.json: damaged" in capsys.readouterr().err


def test_the_state_is_whole_after_jax_took_its_buffers(whole: tuple[train.FitResult, Recorder, Path]) -> None:
    """The step's input is donated; what `fit` returns must not be."""
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(whole[0].state))
