"""Where the checkout's folders are: the package is installed editable, so the repository is its parent."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def runs_dir() -> Path:
    """The folder of all outputs: `runs/` of the checkout, or `$DSV3LAB_RUNS`."""
    return Path(os.environ.get("DSV3LAB_RUNS", ROOT / "runs")).resolve()
