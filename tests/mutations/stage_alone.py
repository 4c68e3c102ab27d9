"""Runs one stage outside any chain of promotions and prints how its gates ended, as JSON.

PYTHONPATH=<checkout> python <checkout>/tests/mutations/stage_alone.py REQUEST.json
"""

import json
import sys
from pathlib import Path

from dsv3lab.config import runs_dir
from dsv3lab.workbook import notebook
from dsv3lab.workbook.compose import compose, dump
from dsv3lab.workbook.process import counted_interrupts
from dsv3lab.workbook.progress import StageLine


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    config, resolved = compose(request["overrides"], phase=request["phase"])
    folder = Path(request["folder"]) / request["stage"]
    folder.mkdir(parents=True)
    (folder.parent / "config.resolved.yaml").write_text(dump(resolved))
    needs = {name: Path(path) for name, path in request["needs"].items()}
    notebook.write_request(folder, config=config, stage=request["stage"], needs=needs)
    with counted_interrupts() as interrupts:
        line = StageLine(request["stage"], folder, expected_s=60.0, out=sys.stderr)
        outcome = notebook.run(
            folder, config=config, runs=runs_dir(), waivers=(), line=line, interrupts=interrupts, tick=lambda: None
        )
    gates = {result.gate_id: {"status": result.status, "observed": result.observed} for result in outcome.results}
    print(json.dumps({"status": outcome.status, "error": outcome.error, "gates": gates}))


if __name__ == "__main__":
    main()
