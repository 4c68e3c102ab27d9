"""`dsv3lab config show|help`: every key is explained, its default has a file, and a mistyped key its nearest name."""

import dataclasses
from dataclasses import dataclass

import pytest
import yaml

from dsv3lab import cli
from dsv3lab.config import CONF, ConfigError, plain
from dsv3lab.config import help as helps
from dsv3lab.config.build import within
from dsv3lab.workbook.compose import compose


@dataclass(frozen=True, kw_only=True)
class Undocumented:
    """A group."""

    explained: int = within(1, 9, unit="steps", doc="so many steps [report 4.2, Eq. 1]")
    below: str
    """What it is,
    on two lines [arXiv:2309.00071]."""
    bare: int
    numbered: int = within(1)


def test_a_field_without_a_text_is_found() -> None:
    assert [path for path, key in helps.keys(Undocumented).items() if not key.meaning] == ["bare", "numbered"]


def test_every_field_of_the_configuration_has_a_text() -> None:
    missing = [path for path, key in helps.keys().items() if not key.meaning]
    assert not missing, f"write a doc=... or a docstring under the field: {', '.join(missing)}"


def test_meaning_unit_range_and_source_come_from_the_field() -> None:
    key = helps.keys(Undocumented)["explained"]
    assert (key.meaning, key.unit, key.type, key.source) == (
        "so many steps",
        "steps",
        "int, at least 1, at most 9",
        "report 4.2, Eq. 1",
    )
    below = helps.keys(Undocumented)["below"]
    assert (below.meaning, below.source) == ("What it is, on two lines.", "arXiv:2309.00071")


def _without_nothing(value):
    """What may be `None` may be left out of a file."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


def test_every_default_is_what_its_file_says_and_what_hydra_composes() -> None:
    config, _ = compose()
    composed = dict(helps._leaves(_without_nothing(plain(config)), ""))
    given = helps.defaults()
    values = {path: _without_nothing(setting.value) for path, setting in given.items()}
    assert {path: value for path, value in values.items() if value is not None} == composed
    for path, setting in given.items():
        text = (CONF.parent / setting.file).read_text()
        assert path.split(".")[-1] in text


def test_every_default_belongs_to_a_key_that_is_explained() -> None:
    unknown = []
    for path in helps.defaults():
        try:
            helps.match(path)
        except ConfigError:
            unknown.append(path)
    free = ("phase.seed.resources.",)  # mappings of names to values, explained as a whole
    assert [path for path in unknown if not path.startswith(free)] == []


def test_other_files_are_shown_beside_the_default() -> None:
    assert helps.elsewhere("model.hidden_size")["model=v3"] == helps.Setting(value=7168, file="conf/model/v3.yaml")
    assert helps.elsewhere("train.tokens")["profile=long"].value == 30_000_000
    assert "profile=default" not in helps.elsewhere("train.tokens")


def test_a_key_is_found_by_path_by_its_end_and_under_a_name_of_its_own() -> None:
    assert list(helps.match("train.loss.mtp_weight")) == ["train.loss.mtp_weight"]
    assert list(helps.match("mtp_weight")) == ["train.loss.mtp_weight"]
    assert {"train.seed", "phase.seed"} == set(helps.match("seed"))
    assert list(helps.match("data.domains.source"))[:2] == ["data.domains.source", "data.domains.source.weight"]
    assert helps.match("model.rope_scaling.factor")["model.rope_scaling.factor"].type == "float, at least 1"


@pytest.mark.parametrize(
    ("word", "near"), [("train.loss.mtp_wieght", "train.loss.mtp_weight"), ("hiden_size", "hidden_size")]
)
def test_an_unknown_key_names_the_nearest(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "help", word]) == 2
    error = capsys.readouterr().err
    assert f"did you mean '{near}'?" in error and error.count("\n") == 1


def test_help_of_a_key_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "help", "train.loss.mtp_weight"]) == 0
    said = capsys.readouterr().out
    for words in ("lambda", "float, at least 0", "0.3   (conf/train/nano.yaml)", "report 2.2, Eq. 25", "2412.19437"):
        assert words in said


def test_help_without_a_key_lists_every_key_within_the_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["config", "help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {word.rstrip(":") for line in lines for word in line.split()}
    assert not set(helps.keys()) - words
    assert max(len(line) for line in lines[:-1]) <= 80


def test_show_prints_the_parts_that_keys_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "train.loss", "profile=ci", "data.name", "train.loss.mtp_weight=0.5"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown) == {"train.loss", "data.name"}
    assert shown["data.name"] == "ci" and shown["train.loss"]["mtp_weight"] == 0.5


def test_show_is_what_config_alone_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--phase", "2", "train.seed=4"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["config", "--phase", "2", "train.seed=4"]) == 0
    assert capsys.readouterr().out == first and yaml.safe_load(first)["train"]["seed"] == 4


def test_show_of_an_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "train.los"]) == 2
    assert "did you mean 'train.loss'?" in capsys.readouterr().err


def test_what_resembles_nothing_is_answered_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "model.nope"]) == 2
    error = capsys.readouterr().err
    assert "did you mean" not in error and "known: " in error and "n_group" in error
    assert cli.main(["config", "help", "qqqqqq"]) == 2
    error = capsys.readouterr().err
    assert "did you mean" not in error and len(error) < 2000 and " in all" in error


def test_keys_are_those_of_the_dataclasses() -> None:
    config, _ = compose()
    for field in dataclasses.fields(config):
        below = [path for path in helps.keys() if path == field.name or path.startswith(f"{field.name}.")]
        is_group = dataclasses.is_dataclass(getattr(config, field.name))
        assert (len(below) > 1) == is_group, f"{field.name} has no keys"
