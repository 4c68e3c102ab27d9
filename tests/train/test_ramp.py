"""The batch that grows and the weights that change: steps and tokens are exact, and no window is lost or repeated."""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab import train
from dsv3lab.config import BatchRampConfig, ChangeConfig, ConfigError, Ramp, TrainConfig
from dsv3lab.model.rope import softmax_scale
from dsv3lab.train import loop, optimizer, step
from dsv3lab.workbook.compose import compose
from tests import builders, tolerances

LENGTH = builders.SEQUENCE_LENGTH
RAMP = BatchRampConfig(start=1, until=0.4, stairs=3)


def grown(tokens: int = 60 * LENGTH, **changes: object) -> TrainConfig:
    """Batches of 1, 2, 3 and then 4 windows."""
    return builders.train_config(**{"tokens": tokens, "micro_batch": None, "batch_ramp": RAMP, **changes})


def changed(config: TrainConfig, *changes: ChangeConfig) -> TrainConfig:
    return replace(config, schedule=replace(config.schedule, changes=changes))


@pytest.mark.parametrize("tokens", [1, 4 * LENGTH, 60 * LENGTH, 60 * LENGTH + 1, 997 * LENGTH + 5])
def test_a_run_ends_with_the_step_that_reaches_the_budget(tokens: int) -> None:
    ramp = grown(tokens).ramp(LENGTH)
    sizes = [ramp.batch_size(step) for step in range(ramp.steps)]
    assert sum(sizes) * LENGTH >= tokens > (sum(sizes) - sizes[-1]) * LENGTH
    taken = 0
    for number, size in enumerate(sizes):
        assert ramp.windows(number) == taken and ramp.tokens_before(number) == taken * LENGTH
        # The rule, from the definition: the stair on which the first token of the step lies.
        stair = min(3, int(Fraction(taken * LENGTH, tokens) / Fraction(4, 30)))
        assert size == 1 + stair, (number, taken)
        taken += size
    assert ramp.windows(ramp.steps) == taken


def test_without_a_ramp_the_steps_are_those_of_a_constant_batch() -> None:
    for tokens in (1, 48, 49, 480, 481):
        config = builders.train_config(tokens=tokens)
        ramp = config.ramp(LENGTH)
        assert ramp.steps == config.steps(LENGTH) == -(-tokens // 48)
        assert ramp.sizes == (4,) and [ramp.windows(step) for step in range(5)] == [0, 4, 8, 12, 16]


def test_no_window_is_left_out_or_taken_twice() -> None:
    ramp = grown().ramp(LENGTH)
    windows = [w for s in range(ramp.steps) for w in range(ramp.windows(s), ramp.windows(s) + ramp.batch_size(s))]
    assert windows == list(range(ramp.windows(ramp.steps))) and set(ramp.sizes) == {1, 2, 3, 4}


def test_a_change_begins_with_the_first_step_behind_its_place() -> None:
    ramp = grown().ramp(LENGTH)
    for fraction in (0.0, 0.1, 0.4, 0.5, 0.99, 1.0):
        first = ramp.step_at(fraction)
        assert ramp.windows(first) >= Fraction(str(fraction)) * 60
        assert first == 0 or ramp.windows(first - 1) < Fraction(str(fraction)) * 60


def test_the_weights_of_a_step() -> None:
    config = changed(
        grown(),
        ChangeConfig(after=0.5, name="mtp_weight", value=0.1),
        ChangeConfig(after=0.75, name="bias_update_speed", value=0.0),
        ChangeConfig(after=0.9, name="mtp_weight", value=0.05),
    )
    ramp = config.ramp(LENGTH)
    for number in range(ramp.steps):
        found = step.weights_at(config, jnp.int32(number), LENGTH).loss
        place = Fraction(ramp.windows(number), 60)
        expected = np.float32(0.3 if place < Fraction(1, 2) else 0.1 if place < Fraction(9, 10) else 0.05)
        assert found.mtp_weight == expected
        assert found.bias_update_speed == np.float32(0.01 if place < Fraction(3, 4) else 0.0)
    assert step.weights_at(grown(), jnp.int32(3), LENGTH) == grown()


def test_the_learning_rate_follows_the_tokens() -> None:
    config = grown()
    ramp = config.ramp(LENGTH)
    one_by_one = builders.train_config(tokens=ramp.tokens_before(ramp.steps), batch_size=1)
    rates, constant = (optimizer.schedule(c, LENGTH) for c in (config, one_by_one))
    for number in range(ramp.steps):
        same_tokens = ramp.windows(number + 1) - 1  # step of the run with one window each that ends at the same token
        np.testing.assert_allclose(rates(number), constant(same_tokens), rtol=10 * tolerances.SCHEDULE_RTOL)


def v3() -> tuple[TrainConfig, Ramp]:
    config, _ = compose(["train=v3"], phase=2)
    return config.train, config.train.ramp(config.data.sequence_length)


def test_the_pre_training_of_v3_has_no_yarn() -> None:
    """V3 report 4.3: the context is extended after it; the released model's scale of the softmax has YaRN's factor."""
    before, after = compose(["model=v3", "train=v3"], phase=2)[0].model, compose(["model=v3"], phase=2)[0].model
    assert softmax_scale(before) == 192**-0.5 and before.max_position_embeddings == 4096
    np.testing.assert_allclose(softmax_scale(after), 192**-0.5 * (0.1 * np.log(40) + 1) ** 2)


def test_the_published_figures_of_v3_are_recomputed() -> None:
    config, ramp = v3()
    assert config.batch_ramp is not None
    assert 15360 * 4096 == 62_914_560 == ramp.tokens_before(ramp.steps) - ramp.tokens_before(ramp.steps - 1)
    after = ramp.steps - ramp.step_at(config.batch_ramp.until)
    assert after == 227_785
    assert ramp.batch_size(0) == 3072 and ramp.sizes == tuple(range(3072, 15361, 1024))
    assert 14.8e12 <= ramp.tokens_before(ramp.steps) < 14.8e12 + 62_914_560


@pytest.mark.parametrize(
    ("tokens", "rate", "mtp", "gamma"),
    [
        (2000 * 3072 * 4096, 2.2e-4, 0.3, 1e-3),
        (9.99e12, 2.2e-4, 0.3, 1e-3),
        (10.01e12, 2.2e-4, 0.1, 1e-3),
        ((10e12 + 14.3e12) / 2, (2.2e-4 + 2.2e-5) / 2, 0.1, 1e-3),
        (14.299e12, 2.2e-5, 0.1, 1e-3),
        (14.301e12, 2.2e-5, 0.1, 0.0),
        (14.632e12, 2.2e-5, 0.1, 0.0),
        (14.634e12, 7.3e-6, 0.1, 0.0),
        (14.8e12, 7.3e-6, 0.1, 0.0),
    ],
)
def test_the_recipe_of_v3_at_its_corners(tokens: float, rate: float, mtp: float, gamma: float) -> None:
    config, ramp = v3()
    number = min(int(np.searchsorted([ramp.tokens_before(s + 1) for s in range(ramp.steps)], tokens)), ramp.steps - 1)
    # Within a thousandth: the places above lie beside the corners, and steps end where they end.
    np.testing.assert_allclose(optimizer.schedule(config, 4096)(number), rate, rtol=1e-3)
    loss = step.weights_at(config, jnp.int32(number), 4096).loss
    assert (loss.mtp_weight, loss.bias_update_speed) == (np.float32(mtp), np.float32(gamma))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_ramp": BatchRampConfig(start=4, until=0.1, stairs=1)}, "batch_ramp: from 4 to 4 sequences"),
        ({"batch_ramp": BatchRampConfig(start=1, until=0.1, stairs=2)}, "there are no 2 equal stairs"),
        ({"micro_batch": 2}, "micro_batch: 3 sequences on one device do not split into parts of 2"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grown(**changes)


def test_changes_out_of_order_are_refused() -> None:
    late, early = (ChangeConfig(after=after, name="mtp_weight", value=0.1) for after in (0.5, 0.4))
    with pytest.raises(ConfigError, match="changes: they must stand in the order"):
        changed(grown(), late, early)


@pytest.mark.limit(150)  # compiles the step for two batch sizes
def test_stopped_on_the_ramp_and_resumed_is_bitwise_the_same(tmp_path: Path) -> None:
    model = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
    ramp = BatchRampConfig(start=2, until=0.5, stairs=1)
    config = changed(
        grown(tokens=12 * LENGTH, batch_ramp=ramp),
        ChangeConfig(after=0.4, name="bias_update_speed", value=0.0),
    )
    run = builders.run_config(model=model, train=config)
    taken: list[tuple[int, int]] = []

    def fit(directory: Path, stop_after: int | None = None) -> train.FitResult:
        options: Any = {"report": seen, "progress": lambda line: None, "stop_after": stop_after}
        return loop.fit(run, Counted(taken=taken), directory, **options)

    points: dict[int, dict[str, float]] = {}

    def seen(metrics: dict[str, float], number: int) -> None:
        points[number] = points.get(number, {}) | metrics

    whole = fit(tmp_path / "whole")
    assert whole.steps == config.steps(LENGTH) == 5 and taken == [(0, 2), (2, 2), (4, 2), (6, 4), (10, 4)]
    assert [points[n]["train/batch_size"] for n in range(1, 6)] == [2, 2, 2, 4, 4]
    assert [points[n]["train/tokens"] for n in range(1, 6)] == [windows * LENGTH for windows in (2, 4, 6, 10, 14)]
    for stop_after in (2, 3, 4):
        directory = tmp_path / str(stop_after)
        assert fit(directory, stop_after=stop_after).steps == stop_after
        resumed = fit(directory)
        assert resumed.resumed_from == stop_after
        assert train.differing_elements(resumed.state, whole.state) == 0


@dataclass(frozen=True)
class Counted(builders.FakeDataset):
    """Notes the windows of every batch up to the fifth step; later steps are asked for ahead, and never run."""

    taken: list[tuple[int, int]] = field(default_factory=list)

    def batch_at(self, step: int, *, batch_size: int | Ramp) -> np.ndarray:
        batch = super().batch_at(step, batch_size=batch_size)
        if isinstance(batch_size, Ramp) and step < batch_size.steps and len(self.taken) < 5:
            self.taken.append((batch_size.windows(step), len(batch)))
        return batch


def test_a_step_reads_its_weights_from_its_own_place() -> None:
    """The objective of the compiled step: lambda is that of the state's step, not of the first one."""
    model = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0)
    config = changed(grown(), ChangeConfig(after=0.5, name="mtp_weight", value=0.0))
    state = step.TrainState.of(builders.random_model(model), config, sequence_length=LENGTH)
    windows = jnp.asarray(builders.FakeDataset().batch_at(0, batch_size=2))

    @jax.jit
    def objective(number: jax.Array) -> tuple[jax.Array, ...]:
        at = step.weights_at(config, number, LENGTH)
        _, parts = step.gradients(state.model, windows, config=at)
        return parts.total, parts.main, parts.mtp, parts.balance

    for number, weight in ((0, 0.3), (config.steps(LENGTH) - 1, 0.0)):
        total, main, mtp, balance = (float(part) for part in objective(jnp.int32(number)))
        np.testing.assert_allclose(total, main + weight * mtp + 1e-2 * balance, rtol=tolerances.LOSS_RTOL)
