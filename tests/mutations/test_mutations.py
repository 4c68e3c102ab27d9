"""For each blocking gate a defect in the code that it stops: the mutated stage runs, and the gate fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ROOT
from dsv3lab.workbook.compose import compose
from tests.mutations.table import MUTATIONS, SOME_TOKENS, Mutation


def _name(mutation: Mutation) -> str:
    return "-".join(mutation.gates)


def mutated_copy(target: Path, mutation: Mutation) -> Path:
    """The checkout's files with the defect in its place."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    path = target / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    return target


def skipped_here(mutation: Mutation) -> set[str]:
    """The gates that a mutated run is not judged by: they are for a GPU or for another profile."""
    gates = compose(mutation.overrides, phase=mutation.phase)[0].phase.gates
    needs = {gate_id: gate.requires for gate_id, gate in gates.items()}
    return {gate_id for gate_id, need in needs.items() if need.device == "gpu" or need.profile is not None}


def execute(root: Path, folder: Path, *, runs: Path, **request: Any) -> dict[str, Any]:
    """Run one stage with the code of `root` and its outputs in `folder`; the status, each gate's status and value."""
    (folder.parent / f"{folder.name}.json").write_text(json.dumps({"folder": str(folder), **request}))
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment |= {"PYTHONPATH": str(root), "DSV3LAB_RUNS": str(runs)}
    done = subprocess.run(
        [sys.executable, str(root / "tests/mutations/stage_alone.py"), str(folder.parent / f"{folder.name}.json")],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_blocking_gate_has_a_mutation() -> None:
    gates = [compose([], phase=number)[0].phase.gates for number in (1, 2, 3, 4)]
    blocking = {gate_id for phase in gates for gate_id, gate in phase.items() if gate.severity == "block"}
    assert {gate for mutation in MUTATIONS for gate in mutation.gates} - {"fp8_loss"} == blocking


@pytest.mark.parametrize("mutation", MUTATIONS, ids=_name)
def test_a_mutation_still_fits_the_code(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the prepared corpus and the compiled programs of all mutated runs."""
    return tmp_path_factory.mktemp("mutations")


@pytest.fixture(scope="module")
def trained(runs: Path) -> Path:
    """The training stage of the code as it is, long enough to beat a bigram: what phases 3 and 4 restore."""
    folder = runs / "trained"
    result = execute(ROOT, folder, runs=runs, phase=2, stage="train", needs={}, overrides=[SOME_TOKENS])
    assert result["status"] == "ok", result
    return folder / "train"


@pytest.mark.slow
@pytest.mark.limit(1500)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=_name)
def test_its_gates_stop_the_mutated_code_and_no_others(
    mutation: Mutation, runs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = mutated_copy(tmp_path / "mutated", mutation)
    needed = compose([], phase=mutation.phase)[0].phase.stages[mutation.stage].needs
    needs = {name: str(request.getfixturevalue("trained")) for name in needed}  # all of them need phase2/train
    settings = {"phase": mutation.phase, "stage": mutation.stage, "needs": needs}
    result = execute(root, tmp_path / "stage", runs=runs, overrides=list(mutation.overrides), **settings)
    assert result["status"] == "ok", result
    gates = compose([], phase=mutation.phase)[0].phase.gates
    found = {gate: outcome["status"] for gate, outcome in result["gates"].items()}
    assert all(found[gate] == "fail" for gate in mutation.gates), (mutation.what, result["gates"])
    others = {gate for gate in found if gate not in (*mutation.gates, *mutation.also)}
    others -= {gate for gate, config in gates.items() if config.threshold == "baseline"}  # it is of other sizes
    elsewhere = skipped_here(mutation)
    assert all(found[gate] == ("skipped" if gate in elsewhere else "pass") for gate in others), (
        mutation.what,
        result["gates"],
    )
