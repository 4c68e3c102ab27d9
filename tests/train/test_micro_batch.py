"""The largest micro-batch that fits, under limits that are made up."""

from pathlib import Path
from types import SimpleNamespace

import jax
import psutil
import pytest

from dsv3lab.config import ConfigError, TrainConfig, build, plain
from dsv3lab.train import micro_batch
from tests import builders

MIB = 2**20


def needs(size: int) -> int:
    return (10 + 3 * size) * MIB


@pytest.mark.parametrize(
    "free, chosen, trials",
    [(58 / 0.8, 12, 1), (46 / 0.8, 12, 1), (45.9 / 0.8, 6, 2), (16 / 0.8, 2, 5), (13 / 0.8, 1, 6)],
)
def test_the_largest_divisor_that_fits_is_chosen(free: float, chosen: int, trials: int) -> None:
    found = micro_batch.choose(12, needs, free_bytes=round(free * MIB))
    assert found.micro_batch == chosen and len(found.tried) == trials
    assert [one.micro_batch for one in found.tried] == [12, 6, 4, 3, 2, 1][:trials]
    assert [one.fits for one in found.tried] == [False] * (trials - 1) + [True]


def test_the_table_shows_what_was_tried() -> None:
    found = micro_batch.choose(4, lambda size: None if size == 4 else needs(size), free_bytes=17 * MIB)
    assert found.table() == [
        "micro-batch     4: more than the compiler could have",
        "micro-batch     2:         16 MiB does not fit into 14 MiB",
        "micro-batch     1:         13 MiB fits",
        "train.micro_batch=auto: 1 sequences at once",
    ]


def test_nothing_that_fits_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigError, match=r"one sequence at a time needs 13 MiB, and 8 MiB \(80% .*train.remat=full"):
        micro_batch.choose(4, needs, free_bytes=10 * MIB)


def test_a_compiler_that_never_had_enough_is_not_compared_with_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"needs more than the compiler could have; set train.remat=full"):
        micro_batch.choose(4, lambda size: None, free_bytes=10 * MIB)


def test_a_compiler_that_runs_out_of_memory_is_a_trial_that_failed() -> None:
    def compile_step(message: str):  # noqa: ANN202
        raise jax.errors.JaxRuntimeError(message)

    assert micro_batch.step_bytes(lambda: compile_step("RESOURCE_EXHAUSTED: Out of memory")) is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        micro_batch.step_bytes(lambda: compile_step("INTERNAL: something else"))


def test_the_bytes_of_a_step_count_what_is_donated_once() -> None:
    def step(weights: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        return weights + batch.sum(), batch[:2]

    weights, batch = jax.ShapeDtypeStruct((1024,), "float32"), jax.ShapeDtypeStruct((256,), "float32")
    compiled = jax.jit(step, donate_argnums=0).lower(weights, batch).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    found = micro_batch.step_bytes(lambda: compiled)
    assert found is not None and 4 * (1024 + 256 + 2) + temporaries <= found < 4 * (1024 + 256 + 2) + temporaries + 256


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    assert micro_batch.free_bytes() == 500
    (tmp_path / "memory.max").write_text("300\n")
    (tmp_path / "memory.current").write_text("120\n")
    (tmp_path / "memory.stat").write_text("anon 90\ninactive_file 20\n")
    assert micro_batch.free_bytes() == 200
    (tmp_path / "memory.max").write_text("max\n")
    assert micro_batch.free_bytes() == 500


def test_the_memory_of_an_accelerator_is_what_its_allocator_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 300})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert micro_batch.free_bytes() == 700


def test_the_key_takes_a_number_null_or_auto() -> None:
    values = plain(builders.train_config())
    for size, parts in ((None, 1), ("auto", 1), (1, 4), (2, 2), (4, 1), (8, 1)):
        assert build(TrainConfig, {**values, "micro_batch": size}).micro_batches(4) == parts
    for size, message in (
        ("atuo", "micro_batch: 'atuo' is not allowed; did you mean 'auto'"),
        (3, "micro_batch: 4 sequences on one device do not split into parts of 3"),
        (0, "below the smallest allowed"),
        (2.5, "expected int"),
        (True, "expected int"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(TrainConfig, {**values, "micro_batch": size})
