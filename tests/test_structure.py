"""The rooms and their arrows, the two halves, the size of files, and names that are promised or absent."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv3lab as dl
from tests.conftest import CHECKED, ROOT

PACKAGE = ROOT / "dsv3lab"
# Room -> the rooms that it may import: the arrows of the design, followed to their end.
_MODEL = {"config", "plan", "model", "program", "measure"}
ARROWS: dict[str, set[str]] = {
    "config": set(),
    "measure": set(),
    "program": set(),
    "plots": set(),
    "plan": {"config"},
    "model": {"config"},
    "data": {"config"},
    "parallel": _MODEL,
    "train": _MODEL | {"parallel", "data"},
    "infer": _MODEL | {"parallel"},
    "eval": _MODEL | {"parallel", "data", "train", "infer"},
    "museum": _MODEL | {"train"},
    "workbook": {"config", "plan", "plots"},
    "studies": {"config", "plan", "plots", "workbook"},
    "cli": {"config", "plan", "plots", "workbook", "studies"},
    "__main__": {"cli"},
    "__init__": {"config"},
}
WITHOUT_JAX = ("config", "plan", "plots", "workbook", "studies", "cli", "__main__", "__init__")
JAX = {"jax", "jaxlib", "equinox", "optax", "orbax", "jaxtyping", "tensorstore"}
TRACKING = {"hydra", "omegaconf", "mlflow", "papermill"}
LONGEST = 400


def room(path: Path) -> str:
    """The room that a source file belongs to; pipelines count as callers of the workbook."""
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "pipelines"


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere in it, at top level or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            # `from dsv3lab import model` names a room as well.
            yield from (f"{node.module}.{a.name}" for a in node.names) if node.module == "dsv3lab" else [node.module]


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "pipelines").glob("*.py")])


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for path in sources():
        here = room(path)
        allowed = ARROWS["cli"] | {"cli"} if here == "pipelines" else ARROWS.get(here, set()) | {here}
        ours = {module.split(".")[1] for module in imported(path) if module.startswith("dsv3lab.")}
        if ours - allowed:
            wrong.append(f"{name(path)} imports {sorted(ours - allowed)}; {here} may import {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_each_half_leaves_out_what_belongs_to_the_other() -> None:
    wrong = []
    for path in sources():
        forbidden = JAX if room(path) in (*WITHOUT_JAX, "pipelines") else TRACKING
        found = {module.split(".")[0] for module in imported(path)} & forbidden
        if found:
            wrong.append(f"{name(path)} imports {sorted(found)}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_picture() -> None:
    """A new room enters the arrows first."""
    assert {room(path) for path in sources()} - {"pipelines"} == set(ARROWS)
    assert set(CHECKED) == set(ARROWS) - set(WITHOUT_JAX), "the shape checks of conftest cover the JAX half"


def test_the_half_without_jax_runs_without_it() -> None:
    modules = [
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources()
        if room(path) in WITHOUT_JAX and path.stem != "__main__"
    ]
    code = (
        "import importlib, sys\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"print(sorted({JAX!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]", f"importing {', '.join(modules)} loads {done.stdout}"


def test_importing_dsv3lab_is_light() -> None:
    code = f"import sys, dsv3lab, dsv3lab.config, dsv3lab.cli; print(sorted({JAX | TRACKING!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_one_idea_long() -> None:
    long = {name(path): lines for path in sources() if (lines := path.read_text().count("\n")) > LONGEST}
    assert not long, f"more than {LONGEST} lines, split by idea: {long}"


def test_promised_names_are_there() -> None:
    for promised in ("config", "init", "abstract", "trainable", "generate", "DeepSeek"):
        assert promised in dir(dl)
        assert getattr(dl, promised) is not None


@pytest.mark.parametrize("later", ["prefill", "decode_step", "load_hf", "save_hf"])
def test_names_that_are_not_built_yet_are_absent(later: str) -> None:
    with pytest.raises(AttributeError, match=f"no name '{later}'"):
        getattr(dl, later)


def test_nothing_is_left_open() -> None:
    words = r"TO" r"DO|FIX" r"ME|XX" r"X|Not" r"ImplementedError|pytest\.sk" r"ip|mark\.sk" r"ip|mark\.xf" r"ail"
    tests = sorted((ROOT / "tests").rglob("*.py"))
    found = {name(path): hits for path in [*sources(), *tests] if (hits := re.findall(words, path.read_text()))}
    assert not found
