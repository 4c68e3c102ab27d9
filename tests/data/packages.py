"""Small packages made by the tests, as pip would have installed them, and a configuration over them."""

import base64
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import config as configs


def install(site: Path, name: str, files: Mapping[str, str | bytes], *, readme: str = "", version: str = "1.0") -> None:
    """Put a package into the folder `site`, with METADATA and a RECORD that lists every file and its hash."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n{readme}"
    record = []
    for path, content in {**files, f"{info}/METADATA": metadata}.items():
        data = content if isinstance(content, bytes) else content.encode()
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={sha256},{len(data)}")
    (site / info / "RECORD").write_text("\n".join([*record, f"{info}/RECORD,,"]) + "\n")


def prose(seed: int, lines: int = 12) -> str:
    """Text that no other seed gives."""
    return "".join(f"value_{seed}_{i} = compute({seed * 31 + i}, 'naïve' if {i} else None)\n" for i in range(lines))


def two_packages(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install `alpha` (to train on) and `beta` (held out), importable as distributions."""
    install(
        site,
        "alpha",
        {f"alpha/m{i}.py": prose(i) for i in range(6)} | {"alpha/tests/test_m.py": prose(90)},
        readme=prose(50),
    )
    install(site, "beta", {f"beta/m{i}.py": prose(10 + i) for i in range(3)}, readme=prose(60))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])


def data_config(**changes: Any) -> configs.DataConfig:
    """Source and readme of alpha and beta."""

    def domain(kind: str, weight: float) -> dict[str, Any]:
        packages = ["alpha", "beta"]
        return {"kind": kind, "weight": weight, "packages": packages, "validation": ["beta"], "max_bytes": 10**6}

    values = {
        "name": "tiny",
        "sequence_length": 16,
        "min_document_bytes": 10,
        "max_document_bytes": 100_000,
        "shuffle_seed": 0,
        "tokenizer": {"vocab_size": 300, "train_bytes": 10_000},
        "domains": {"source": domain("source", 0.75), "readme": domain("readme", 0.25)},
    }
    return configs.build(configs.DataConfig, values | changes, path="data")
