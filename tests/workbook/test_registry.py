"""Promoted checkpoints as registered models: one version for each, and aliases that follow the newest promotions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import config, plain
from dsv3lab.workbook import Stage, chain, pipeline, record, sync, verify
from dsv3lab.workbook.trackers import registry
from tests.workbook import lab
from tests.workbook.lab import InProcess, four_phases, good, slow

pytestmark = pytest.mark.limit(90)  # four phases, and importing MLflow takes seconds


def export(stage: Stage) -> None:
    good(stage)
    folder = stage.folder / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"files": {}, "digest": "d" * 64}))
    (folder / "meta.json").write_text(json.dumps({"step": 540}))


def tracked(root: Path) -> Path:
    conf = four_phases(root)
    path = conf / "tracking" / "mlflow.yaml"
    path.write_text(path.read_text().replace("enabled: false", "enabled: true"))
    return conf


def versions(store: Any) -> list[Any]:
    return sorted(store.search_model_versions("name = 'dsv3lab-nano'"), key=lambda one: int(one.version))


def aliases(store: Any) -> dict[str, str]:
    return {alias: str(v) for alias, v in store.get_registered_model("dsv3lab-nano").aliases.items()}


def test_a_promoted_checkpoint_is_a_version_with_the_aliases_of_its_phases(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    child.acts = {"phase2/only": export}
    conf = tracked(tmp_path)
    assert pipeline.main_all([], conf=conf) == 0
    (one,) = versions(store)
    folder = lab.the_run(runs, "phase2")
    held = record.read(folder)
    assert one.source == (folder / "only" / "model").as_uri()
    assert aliases(store) == {"phase2": "1", "phase4": "1"}  # the fourth reads what the second exports
    assert one.tags["record_sha256"] == record.sha256(folder) and one.tags["config_sha256"] == held.config_sha256
    assert (one.tags["scope"], one.tags["profile"], one.tags["step"]) == ("1 x cpu", "default", "540")
    assert one.run_id == lab.found(store)[f"{folder.name}/only"].info.run_id
    assert "2/2 gates pass" in one.description
    capsys.readouterr()
    assert sync.main([]) == 0 and "registered models: up to date" in capsys.readouterr().out
    assert pipeline.main(["phase2"], conf=conf) == 0  # the fourth still stands on the first version
    assert len(versions(store)) == 2 and aliases(store) == {"phase2": "2", "phase4": "1"}
    assert verify.verify(runs).problems == []


def test_sync_registers_what_was_promoted_without_a_store(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    child.acts = {"phase2/only": export}
    conf = four_phases(tmp_path)
    assert pipeline.main_all([], conf=conf) == 0
    assert pipeline.main(["phase2"], conf=conf) == 0
    assert versions(store) == []
    capsys.readouterr()
    assert sync.main([]) == 0  # the newest promotion decides, in whichever order folders are reported
    assert len(versions(store)) == 2 and aliases(store) == {"phase2": "2", "phase4": "1"}
    store.delete_registered_model_alias("dsv3lab-nano", "phase2")
    store.delete_model_version("dsv3lab-nano", "1")
    assert sync.main([]) == 0 and "registered models: 1 new" in capsys.readouterr().out
    assert aliases(store) == {"phase2": "2", "phase4": "3"}


def test_what_is_not_promoted_or_no_longer_there_is_not_registered(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    def poor(stage: Stage) -> None:
        export(stage)
        slow(stage)

    child.acts = {"phase2/only": poor}
    conf = tracked(tmp_path)
    assert pipeline.main_all([], conf=conf) == 1
    assert store.search_registered_models() == []
    child.acts = {"phase2/only": export}
    assert pipeline.main(["phase2", "tracking.enabled=false"], conf=conf) == 0
    shutil.rmtree(lab.the_run(runs, "phase2"))
    capsys.readouterr()
    assert registry.register(store, "0", runs) == 0 and store.search_registered_models() == []
    (runs / chain.CHAIN).write_text("cut\n")
    assert sync.main([]) == 3 and "promoted checkpoints: not registered: ChainError" in capsys.readouterr().out


def test_a_shape_without_a_name_is_called_by_its_digest(runs: Path, child: type[InProcess], tmp_path: Path) -> None:
    assert pipeline.main(["phase1"], conf=four_phases(tmp_path)) == 0
    held = record.read(lab.the_run(runs))
    assert registry.model_name(held) == "dsv3lab-nano"
    held.shared["model"] = plain(config("nano", hidden_size=256))
    name = registry.model_name(held)
    assert name.startswith("dsv3lab-") and len(name) == len("dsv3lab-") + 8
