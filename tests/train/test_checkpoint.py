"""Checkpoints: bitwise round trip, retention, debris, and every kind of damage named."""

import asyncio
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsv3lab.config import ConfigError, plain
from dsv3lab.train import checkpoint
from dsv3lab.train.checkpoint import CheckpointError
from dsv3lab.train.step import TrainState
from tests import builders
from tests.train.helpers import random_like

MODEL = builders.model_config(num_hidden_layers=1, first_k_dense_replace=0, num_nextn_predict_layers=0)
TRAIN = builders.train_config()
SHAPES = TrainState.abstract(MODEL, TRAIN, sequence_length=8)
IDENTITY = {"model": plain(MODEL), "train": {"seed": 0}, "data_digest": "abc"}


def state_at(step: int) -> TrainState:
    return eqx.tree_at(lambda s: s.step, random_like(SHAPES, seed=step), jnp.int32(step))


def save(directory: Path, step: int, *, keep: int = 3) -> Path:
    return checkpoint.save(directory, state_at(step), identity=IDENTITY, keep=keep)


def assert_same(left: object, right: object) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path) -> None:
    """One bit of the byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_state_comes_back_bitwise(tmp_path: Path) -> None:
    assert checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY) is None
    save(tmp_path, 2)
    save(tmp_path, 4)
    restored = checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)
    assert restored is not None and jax.tree.structure(restored) == jax.tree.structure(state_at(4))
    assert_same(restored, state_at(4))


def test_it_works_in_a_running_event_loop(tmp_path: Path) -> None:
    """A notebook's kernel runs one."""

    async def cell() -> TrainState | None:
        save(tmp_path, 2)
        return checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)

    assert_same(asyncio.run(cell()), state_at(2))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=2)
    assert checkpoint.steps(tmp_path) == [6, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000006", "step_00000008"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 2)
    debris = tmp_path / f"{checkpoint.DEBRIS}step_00000004" / "model"
    debris.mkdir(parents=True)
    (debris / "half").write_bytes(b"x")
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("moment", ["StandardSave", "digest", "flush", "replace", "rmtree"])
def test_a_save_that_breaks_off_leaves_the_last_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whatever a save does last, the newest checkpoint is whole: the old one, or the new one."""
    save(tmp_path, 2, keep=1)

    def break_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owners = {"StandardSave": checkpoint.ocp.args, "replace": checkpoint.os, "rmtree": checkpoint.shutil}
    with monkeypatch.context() as patch:
        if moment == "rmtree":  # of the deletion of the old checkpoint: the new one is there already
            save(tmp_path, 4, keep=2)
        patch.setattr(owners.get(moment, checkpoint), moment, break_off)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 4, keep=1)
    checkpoint.clean(tmp_path)
    expected = 4 if moment == "rmtree" else 2
    restored = checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)
    assert_same(restored, state_at(expected))
    save(tmp_path, 6, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000006"]


def test_a_checkpoint_made_with_other_versions_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_versions", lambda: {"jax": "0.1", "orbax": "0.1"})
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"step_00000002: made elsewhere \(jax 0\.1 -> .*not bit for bit"):
        assert_same(checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY), state_at(2))


def test_a_folder_that_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step_00000002.bak").mkdir()
    assert checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY) is None


def test_a_flipped_bit_in_any_file_is_named(tmp_path: Path) -> None:
    """Orbax itself restores most of them without a word."""
    folder = save(tmp_path, 2)
    for path in files_of(folder):
        if path.stat().st_size == 0:
            continue
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)
        assert str(path) in str(caught.value)
        path.write_bytes(whole)
    checkpoint.verify(folder)


def test_a_missing_and_an_added_file_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    (folder / "model" / "more").write_text("x")
    with pytest.raises(CheckpointError, match=r"model/more: not listed"):
        checkpoint.verify(folder)
    (folder / "model" / "more").unlink()
    for path in files_of(folder):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match="missing") as caught:
            checkpoint.verify(folder)
        assert str(path) in str(caught.value)
        path.write_bytes(whole)


def test_a_damaged_newest_checkpoint_is_refused_with_the_way_on(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    flip(tmp_path / "step_00000006" / "meta.json")
    flip(tmp_path / "step_00000004" / "meta.json")
    with pytest.raises(CheckpointError, match=r"delete .*step_00000006 to continue from step 2, whose"):
        checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)
    flip(tmp_path / "step_00000002" / "meta.json")
    with pytest.raises(CheckpointError, match="to start again"):
        checkpoint.restore(tmp_path, SHAPES, identity=IDENTITY)


def test_another_configuration_or_other_data_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 2)
    with pytest.raises(ConfigError, match="train.seed: checkpoint 0, now 1"):
        checkpoint.restore(tmp_path, SHAPES, identity={**IDENTITY, "train": {"seed": 1}})
    with pytest.raises(ConfigError, match="data_digest: checkpoint 'abc', now 'abd'"):
        checkpoint.restore(tmp_path, SHAPES, identity={**IDENTITY, "data_digest": "abd"})


def test_an_exported_model_comes_back_and_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    checkpoint.export_final(folder, state_at(1), identity=IDENTITY)
    checkpoint.export_final(folder, state_at(5), identity=IDENTITY)  # again: the newer one replaces it
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    model = checkpoint.load_model(folder, MODEL)
    assert jax.tree.structure(model) == jax.tree.structure(state_at(5).model)
    assert_same(model, state_at(5).model)
    assert not (folder / "optimizer").exists()
    with pytest.raises(ConfigError, match="model.hidden_size: checkpoint 16, now 32"):
        checkpoint.load_model(folder, builders.model_config(hidden_size=32))
    flip(folder / "meta.json")
    with pytest.raises(CheckpointError, match=r"meta.json: damaged"):
        checkpoint.load_model(folder, MODEL)


def test_the_manifest_digest_follows_the_contents(tmp_path: Path) -> None:
    first = checkpoint.export_final(tmp_path / "a", state_at(1), identity=IDENTITY)
    second = checkpoint.export_final(tmp_path / "b", state_at(2), identity=IDENTITY)
    assert checkpoint.verify(first) != checkpoint.verify(second)
