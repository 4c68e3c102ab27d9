"""The pages for users: what they name is there, and what they show runs."""

import re
import shlex
from pathlib import Path

import pytest

from dsv3lab import cli
from dsv3lab.config import CONF, ROOT
from dsv3lab.config.help import match
from dsv3lab.config.seed_keys import RULES, To
from dsv3lab.workbook.compose import compose

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "conf|notebooks|pipelines|docs|dsv3lab|tests|benchmarks"
SECTIONS = "model|data|train|eval|study|precision|parallel|profile|tracking"
PLACEHOLDER = re.compile(r"phaseN|<|NN_|\*|\{")


def named(page: Path) -> str:
    """What a page shows as code or links to."""
    text = page.read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", rest), *re.findall(r"\]\(([^)#]+)\)", rest)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_exists(page: Path) -> None:
    found = [path.rstrip(".,:") for path in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[^\s`'\",;:)]*", named(page))]
    found = [path for path in found if not PLACEHOLDER.search(path)]
    assert found, "nothing was looked for"
    made = {"conf/baselines/", "conf/waivers.yaml"}  # written by users
    assert [path for path in found if path not in made and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_on_a_page_is_one_of_the_configuration(page: Path) -> None:
    for key in re.findall(rf"(?<![\w./])(?:{SECTIONS})(?:\.\w+)+(?![\w(/])", named(page)):
        match(key)  # refuses what is none


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_choice_on_a_page_has_its_file(page: Path) -> None:
    groups = "|".join(folder.name for folder in CONF.iterdir() if folder.is_dir())
    for group, choices in re.findall(rf"(?<![\w.])({groups})=([\w|]+)", named(page)):
        for choice in choices.split("|"):
            assert (CONF / group / f"{choice}.yaml").is_file(), f"{group}={choice}"


def test_the_row_on_imbalance_names_the_loss_that_the_seed_means() -> None:
    rule = RULES["model.moe.router_aux_loss_weight"]
    (row,) = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if "Load imbal" in line]
    assert isinstance(rule, To) and f"The key for it is `{rule.targets[0]}`" in row
    (notebook,) = re.findall(r"`(notebooks/[\w/]+\.ipynb)`", row)
    assert "*Switch loss*" in (ROOT / notebook).read_text(), "the two are compared elsewhere"


def test_the_readme_names_every_verb_and_the_choices_of_a_run() -> None:
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    run = (
        "train.micro_batch=auto",
        "debug=true",
        "precision=bf16",
        "tracking.also=[tensorboard]",
        "preset=",
        "@tiny.yaml",
    )
    for words in (*(f"dsv3lab {verb}" for verb in cli.VERBS if verb not in ("run", "train", "ui", "doctor")), *run):
        assert words in commands, words
    for overrides in re.findall(r"^python pipelines/phase2\.py ([^-\s][^#]*?) +#", commands, re.MULTILINE):
        words = [word for word in shlex.split(overrides) if word.split("=")[0] not in ("resume", "force")]
        compose(words, phase=2)


@pytest.mark.limit(90)  # initialises, runs and generates: three programs are compiled
def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import dsv3lab
    from tests import builders

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert 'dl.config("nano")' in code
    monkeypatch.setattr(dsv3lab, "config", lambda name: builders.model_config(), raising=False)
    names: dict[str, object] = {}
    exec(code, names)
    logits, output, text = names["logits"], names["output"], names["text"]
    assert logits.shape == (2, 16, 64) and len(output.mtp) == 1  # type: ignore[attr-defined]
    assert [len(one) for one in text.continuations()] == [32, 32]  # type: ignore[attr-defined]


def test_times_are_computed_and_not_written_into_comments() -> None:
    """`dsv3lab quickstart` says how long a profile takes, from earlier runs or conf/phase."""
    said = re.compile(r"\b(within|about|one to) ?\w* (minutes|hours)\b|hours on (two )?CPU", re.IGNORECASE)
    for path in (*CONF.glob("profile/*.yaml"), CONF / "train" / "nano.yaml"):
        comments = " ".join(line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line)
        assert not said.search(comments), path.name
