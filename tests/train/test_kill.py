"""kill -9 in every awkward moment of one run, which then ends with the bits of a run that nothing interrupted."""

import subprocess
import sys
from pathlib import Path

import pytest

from dsv3lab import train
from dsv3lab.config import ROOT
from dsv3lab.train import checkpoint
from tests.train.child import TEAR
from tests.train.test_loop import fit

# What each killed process leaves: checkpoints, and whether there is debris.
LEFT = {"arrays": ([], True), "step": ([2, 4], False), "delete": ([4, 6], True)}


@pytest.mark.limit(240)  # three processes that import JAX and load or compile the step
def test_kill_9_at_every_awkward_moment_changes_no_bit(tmp_path: Path) -> None:
    torn, whole = tmp_path / "torn", tmp_path / "whole"
    for moment in TEAR:
        command = [sys.executable, "-m", "tests.train.child", str(torn), moment]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert child.returncode == -9, (moment, child.stdout, child.stderr)
        debris = list(torn.glob(f"{checkpoint.DEBRIS}*"))
        assert (checkpoint.steps(torn), bool(debris)) == LEFT[moment], moment
    last = fit(torn)
    assert last.finished and last.resumed_from == 6
    names = sorted(path.name for path in torn.iterdir())
    assert names == ["lock", "metrics.jsonl", "step_00000004", "step_00000006"]
    assert train.differing_elements(last.state, fit(whole).state) == 0
