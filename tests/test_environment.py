"""pyproject.toml, environment.yml and constraints.txt say the same; the Makefile and CI call what the README promises."""

import os
import re
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
# jax 0.10.2 is the last for 3.11; 0.12 has not been tried yet.
JAX = {"3.11.7": "0.10.2", "3.12.1": "0.11.2", "3.13.0": "0.11.2"}


def requirements(*extras: str) -> Iterator[Requirement]:
    """The requirements of the package with some of its extras."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    yield from (Requirement(text) for group in groups for text in group)


def pins(python: str) -> dict[str, str]:
    """The pinned versions for a Python version on Linux."""
    environment: Environment = default_environment() | {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    found: dict[str, str] = {}
    for line in PINS:
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in found, f"{pin.name} is pinned twice for Python {python}"
            found[pin.name] = str(pin.specifier).removeprefix("==")
    return found


def test_the_conda_environment_asks_for_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    options = [item for item in pip if item.startswith("-")]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert options == ["--constraint constraints.txt", "--editable ."]
    assert [Requirement(item) for item in pip if item not in options] == list(requirements("dev"))


@pytest.mark.parametrize("python", JAX)
def test_the_pins_satisfy_every_requirement(python: str) -> None:
    pinned = pins(python)
    assert pinned["jax"] == pinned["jaxlib"] == JAX[python]
    assert pinned["mlflow"] == "3.17.2"
    for requirement in requirements("dev", "hf", "gpu"):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} on {python}: pinned {version}"


def test_the_pins_name_no_place() -> None:
    for line in PINS:
        pin = Requirement(line)  # an index address, a path, a hash or an option would not parse
        assert pin.url is None and re.fullmatch(r"==[\w.!+]+", str(pin.specifier)), line


def test_python_range() -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11") and not SpecifierSet(
        PROJECT["requires-python"]
    ).contains("3.10.14")


def test_make_help_names_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    documented = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert set(documented) == set(phony.split()) - {"same-python"}  # a check, not a command


def test_ci_is_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_hooks_clone_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["id"] for repo in config["repos"] for hook in repo["hooks"]} == {
        "ruff-format",
        "ruff",
        "nbstripout",
        "basedpyright",
        "large-files",
    }


def test_licence() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
