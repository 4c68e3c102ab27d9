"""DeepSeek-V3 in JAX, as a workbook. `import dsv3lab as dl` is light: each name loads its room on first use."""

import importlib
from typing import Any

_NAMES = {
    "config": "dsv3lab",
    "init": "dsv3lab.model",
    "abstract": "dsv3lab.model",
    "trainable": "dsv3lab.model",
    "DeepSeek": "dsv3lab.model",
    "generate": "dsv3lab.infer",
}


def __getattr__(name: str) -> Any:
    if name == "config":  # the room itself, which can be called
        return importlib.import_module("dsv3lab.config")
    if name not in _NAMES:
        raise AttributeError(f"module 'dsv3lab' has no name '{name}'; it has {', '.join(sorted(_NAMES))}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_NAMES)
