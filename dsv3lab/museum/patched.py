"""The model and the training step with one mistake in them, beside the right ones in the same process.

The modules of `dsv3lab.model` and `dsv3lab.train` are executed a second time under another name, from their own source
with the mistake's text in its place. So the mistake that the notebook measures is the one that the tests have to catch,
and the model holds no switch.
"""

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from dsv3lab.config import ROOT, ModelConfig
from dsv3lab.museum.switch import NAME, Switch
from dsv3lab.museum.table import Mistake

PACKAGE = ROOT / "dsv3lab"
OURS = re.compile(r"\bdsv3lab\.(model|train)\b")
BARE = ("", "train")
"""Packages that are entered without running their `__init__`, which would load the loop and the checkpoints too."""


@dataclass(frozen=True)
class Patched:
    """The rooms of one mistake; `None` as the mistake: a second copy of the right code, or one with a `switch`.

    model: as `dsv3lab.model`.
    fp8: as `dsv3lab.model.fp8`.
    losses: as `dsv3lab.train.losses`.
    step: as `dsv3lab.train.step`.
    switch: what chooses among several mistakes at run time; `None`: the copy is what it is.
    """

    mistake: Mistake | None
    model: Any
    fp8: Any
    losses: Any
    step: Any
    switch: Switch | None = None

    def set_to(self, number: Any) -> AbstractContextManager[None]:
        """Inside, the copy makes the mistake `number` of its switch; without a switch it stays what it is."""
        return nullcontext() if self.switch is None else self.switch.set_to(number)

    def adopt(self, model: Any, config: ModelConfig) -> Any:
        """The arrays of a right `model` of `config` in the classes of this copy."""
        shapes = self.model.abstract(config)
        return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))


def load(mistake: Mistake | None) -> Patched:
    """The copy with `mistake`, made once in a process.

    Raises:
        ValueError: if the text that the mistake replaces does not stand exactly once in its file.
    """
    return _copy("no_mistake" if mistake is None else mistake.name, mistake, None)


def load_switched(mistakes: Sequence[Mistake]) -> Patched:
    """A copy with all of `mistakes` in it, whose `switch` says which one is made.

    Raises:
        ValueError: if a text that a mistake replaces does not stand exactly once in its file or lies within that of an
            earlier one, or if the mistake is no argument of a program.
    """
    for mistake in mistakes:
        source(ROOT / mistake.file, mistake)
        if not mistake.is_argument:
            reason = "it has several texts" if mistake.also else "it shows in FP8 products only"
            raise ValueError(f"mistake '{mistake.name}' cannot be chosen by an argument: {reason}")
    return _copy("a_switch", None, Switch(mistakes))


def _copy(name: str, mistake: Mistake | None, switch: Switch | None) -> Patched:
    alias = f"dsv3lab_with_{name}"
    if switch is not None:
        for module in [module for module in sys.modules if module.partition(".")[0] == alias]:
            del sys.modules[module]  # another switch has other texts
    with _finding(_Finder(alias, mistake, switch)):
        model, fp8 = (importlib.import_module(f"{alias}.{name}") for name in ("model", "model.fp8"))
        losses, step = (importlib.import_module(f"{alias}.train.{name}") for name in ("losses", "step"))
    return Patched(mistake, model, fp8, losses, step, switch)


def source(path: Path, mistake: Mistake | None) -> str:
    """The text of one of our files, with `mistake` in it if it belongs there."""
    text = path.read_text()
    if mistake is None:
        return text
    for file, right, wrong in mistake.edits:
        if path != ROOT / file:
            continue
        if text.count(right) != 1:
            raise ValueError(
                f"mistake '{mistake.name}': its text stands {text.count(right)} times in {file}, not once; "
                "bring dsv3lab/museum/table.py up to date"
            )
        text = text.replace(right, wrong)
    return text


@dataclass(frozen=True)
class _Finder(MetaPathFinder, Loader):
    """Finds and executes the modules below the name `alias`."""

    alias: str
    mistake: Mistake | None
    switch: Switch | None

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] != self.alias:
            return None
        place = PACKAGE.joinpath(*fullname.split(".")[1:])
        if place.is_dir():
            return spec_from_file_location(
                fullname, place / "__init__.py", loader=self, submodule_search_locations=[str(place)]
            )
        return spec_from_file_location(fullname, place.with_suffix(".py"), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        path = Path(str(module.__file__))
        if module.__name__.partition(".")[2] in BARE:
            return
        text = source(path, self.mistake)
        if self.switch is not None:
            text = self.switch.text(path.relative_to(ROOT).as_posix(), text)
            module.__dict__[NAME] = self.switch
        text = OURS.sub(rf"{self.alias}.\1", text)
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)


@contextmanager
def _finding(finder: MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
