"""When a training process is killed."""

from pathlib import Path

from dsv3lab import train
from dsv3lab.train import checkpoint, reports


def test_a_step_is_reached_when_its_whole_line_is_there(tmp_path: Path) -> None:
    reached, path = train.reached(12), tmp_path / reports.NAME
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 12, "metrics": {}}')  # the newline is still to come
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 12, "metrics": {"a": {}')  # cut after an inner brace
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 13, "metrics": {}}\n{"st')
    assert reached(tmp_path)


def test_a_save_lasts_until_the_checkpoint_has_its_name(tmp_path: Path) -> None:
    saving, unfinished = train.saving(4), tmp_path / f"{checkpoint.DEBRIS}step_00000004"
    assert not saving(tmp_path)
    unfinished.mkdir()
    assert saving(tmp_path) and not train.saving(2)(tmp_path)
    unfinished.rename(tmp_path / "step_00000004")
    assert not saving(tmp_path)
