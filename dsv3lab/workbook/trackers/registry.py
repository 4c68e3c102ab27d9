"""Promoted checkpoints as registered models in MLflow: a projection of the chain of promotions.

A version for each promoted record that holds a checkpoint, under the name of its model; the alias of a phase ("phase2")
is on the version that its newest promotion holds or, like phase 4, reads. The source is the checkpoint's own folder:
nothing is copied, and whoever loads it checks it against its manifest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3lab.config import CONF, config, digest, plain
from dsv3lab.workbook import chain, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook.chain import Promotion
from dsv3lab.workbook.files import read_json
from dsv3lab.workbook.record import PhaseRecord, RecordError
from dsv3lab.workbook.store import one_at_a_time

EXPORT = "model"
"""The folder of a stage that holds the model which it exports (`checkpoint.export_final`)."""
RECORD_TAG = "record_sha256"


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """A promoted checkpoint."""

    folder: Path
    stage: str
    """As in the needs of other phases: `phase2/train`."""
    line: Promotion
    record: PhaseRecord


def register(client: Any, experiment: str, runs: Path) -> int:
    """Make the versions that are missing and set the aliases; returns how many versions are new.

    Args:
        client: of the store that holds the runs.
        experiment: id of the experiment, in which each version finds the run of its stage.
        runs: the folder of all outputs.

    Raises:
        ChainError: if the chain of promotions is not intact.
    """
    promoted = [(line, record) for line in chain.read_chain(runs) if (record := _intact(line, runs))]
    exported = {one.line.record_sha256 + one.stage: one for pair in promoted for one in _exports(*pair, runs)}
    aliases: dict[tuple[str, str], _Exported] = {}
    for line, record in promoted:  # the newest comes last
        needs = record.upstream.needs if record.upstream else {}
        read = [exported[sha256 + stage] for stage, sha256 in needs.items() if sha256 + stage in exported]
        for one in [*read, *_exports(line, record, runs)]:
            aliases[model_name(one.record), line.phase] = one
    with one_at_a_time(runs / ".mlflow.lock"):
        known = {name: _versions(client, name) for name in {model_name(one.record) for one in exported.values()}}
        new = 0
        for key, one in exported.items():
            name = model_name(one.record)
            if key not in known[name]:
                known[name][key] = _create(client, experiment, name, one)
                new += 1
        for (name, alias), one in aliases.items():
            version = known[name][one.line.record_sha256 + one.stage]
            if str(client.get_registered_model(name).aliases.get(alias)) != version:
                client.set_registered_model_alias(name, alias, version)
    return new


def model_name(record: PhaseRecord) -> str:
    """`dsv3lab-nano` for the shape in `conf/model/nano.yaml`; a shape without a file has a piece of its digest."""
    shape = record.shared["model"]
    for path in sorted((CONF / "model").glob("*.yaml")):
        if plain(config(path.stem)) == shape:
            return f"dsv3lab-{path.stem}"
    return f"dsv3lab-{digest(shape)[:8]}"


def _intact(line: Promotion, runs: Path) -> PhaseRecord | None:
    """The record of a promotion; nothing for one that was deleted or changed, which `dsv3lab verify` names."""
    folder = (runs / line.record).parent
    try:
        return records.read(folder) if records.sha256(folder) == line.record_sha256 else None
    except (OSError, RecordError):
        return None


def _exports(line: Promotion, record: PhaseRecord, runs: Path) -> list[_Exported]:
    run = (runs / line.record).parent
    found = [(stage.name, run / stage.name / EXPORT) for stage in record.stages]
    return [
        _Exported(folder=folder, stage=f"{line.phase}/{name}", line=line, record=record)
        for name, folder in found
        if (folder / "manifest.json").is_file() and (folder / "meta.json").is_file()
    ]


def _versions(client: Any, name: str) -> dict[str, str]:
    """The versions that are there, by record and stage; makes the registered model if it is not."""
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(
            name, description="Promoted checkpoints; each alias is a phase that stands on it."
        )
    found = client.search_model_versions(f"name = '{name}'", max_results=10000)
    return {one.tags.get(RECORD_TAG, "") + one.tags.get("stage", ""): str(one.version) for one in found}


def _create(client: Any, experiment: str, name: str, one: _Exported) -> str:
    from dsv3lab.workbook.tracking import RUN_TAG

    run = f"{one.line.phase}/{one.record.run}"
    stage = one.stage.split("/")[1]
    found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{run}/{stage}'", max_results=1)
    scope, results = one.line.scope, one.record.results
    tags = {
        RUN_TAG: run,
        "stage": one.stage,
        "profile": one.line.profile,
        "scope": f"{scope.count} x {scope.kind}",
        "config_sha256": one.record.config_sha256,
        RECORD_TAG: one.line.record_sha256,
        "checkpoint_digest": str(read_json(one.folder / "manifest.json").get("digest")),
        "step": str(read_json(one.folder / "meta.json").get("step")),
        "promoted": one.line.created,
    }
    created = client.create_model_version(
        name,
        source=one.folder.as_uri(),
        run_id=found[0].info.run_id if found else None,
        tags=tags,
        description=f"{run}, promoted for {tags['scope']} with profile {one.line.profile}: {verdict.count(results)}",
        await_creation_for=0,
    )
    return str(created.version)
