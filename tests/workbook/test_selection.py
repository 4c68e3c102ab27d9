"""`--only` and `--from`: what is reused, and what is refused before anything runs."""

import os
from pathlib import Path
from typing import Any

from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import commands, pipeline, verify
from tests.workbook import lab
from tests.workbook.lab import InProcess, fail, good, slow


def test_only_reuses_what_is_still_valid(conf: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    child.acts = {"phase1/b": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    first = lab.the_run(runs)
    child.acts, child.calls = {}, []
    assert pipeline.main(["phase1", "--only", "b"], conf=conf) == 0
    assert child.calls == ["phase1/b"] and lab.statuses(runs) == {"a": "reused", "b": "ok"}
    assert f"reused from {first.name}" in capsys.readouterr().out
    assert os.path.samefile(first / "a" / "stage.json", lab.the_run(runs) / "a" / "stage.json")
    assert verify.verify(runs).problems == [] and len(chains.read_chain(runs)) == 1
    child.calls = []
    assert pipeline.main(["phase1", "--from", "phase1/a"], conf=conf) == 0
    assert child.calls == ["phase1/a", "phase1/b"]


def refused(conf: Path, runs: Path, child: type[InProcess], capsys: Any, *words: str) -> str:
    """Why the pipeline refuses `words`; nothing may have been run or written."""
    before, child.calls = sorted((runs / "phase1").glob("2*")), []
    capsys.readouterr()
    assert pipeline.main(["phase1", *words], conf=conf) == 2
    assert child.calls == [] and sorted((runs / "phase1").glob("2*")) == before
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_only_never_reuses_what_differs_or_did_not_pass(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "stage a was not asked for and cannot be reused: there is no earlier execution of it" in error
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=conf) == 1
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "did not pass (gate a_speed" in error and error.endswith(f"run `{commands.pipeline('phase1')}`\n")
    child.acts = {}
    assert pipeline.main(["phase1"], conf=conf) == 0
    error = refused(conf, runs, child, capsys, "--only", "b", "train.seed=5")
    assert "the configuration was another" in error and error.endswith("pipelines/phase1.py train.seed=5`\n")
    damaged = lab.the_run(runs)
    with open(damaged / "a" / "metrics.jsonl", "a") as file:
        file.write("\n")
    for path in (runs / "phase1").glob("*/record.json"):
        if path.parent != damaged:
            path.unlink()
    assert "a/metrics.jsonl changed since it was recorded" in refused(conf, runs, child, capsys, "--only", "b")


def test_a_stage_that_reads_another_is_not_reused_when_that_one_runs(
    tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    notebooks = {name: lab.write_notebook(tmp_path / f"{name}.ipynb", []) for name in ("a", "b", "c")}
    conf = lab.write_conf(tmp_path, notebooks, needs={"c": ["phase1/b"]})
    child.acts = {"phase1/c": lambda stage: (stage.need("phase1/b"), good(stage))[1]}
    assert pipeline.main(["phase1"], conf=conf) == 0
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "it reads phase1/b, which is to be run anew" in error and "pipelines/phase1.py --from b`" in error
    child.calls = []
    assert pipeline.main(["phase1", "--from", "b"], conf=conf) == 0
    assert lab.statuses(runs) == {"a": "reused", "b": "ok", "c": "ok"}
    assert pipeline.main(["phase1", "--only", "a"], conf=conf) == 0
    assert lab.statuses(runs) == {"a": "ok", "b": "reused", "c": "reused"}
    child.acts = {"phase1/b": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert "pipelines/phase1.py --from b" in capsys.readouterr().out
