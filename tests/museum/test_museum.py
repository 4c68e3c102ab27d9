"""Every mistake of the museum makes the test fail that is named beside it, and the right code passes all of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import dsv3lab as dl
from dsv3lab.config import ROOT
from dsv3lab.museum import MISTAKES, OTHERS, RIGHT, Mistake, Specimen, difference, load, load_switched, look, train
from dsv3lab.museum.patched import source
from dsv3lab.museum.switch import Switch
from dsv3lab.workbook.process import machine
from tests.builders import train_config

BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
NAMES = [mistake.name for mistake in MISTAKES]


def test_names_are_unique_and_every_mistake_has_its_source() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(mistake.title and mistake.why and mistake.room for mistake in MISTAKES)
    published = [mistake for mistake in MISTAKES if mistake.published]
    assert len(published) >= 15
    for mistake in published:
        assert re.search(r"#\d+|at [0-9a-f]{8}", mistake.source), f"{mistake.name}: no issue, pull request or commit"


@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_a_mistake_still_fits_the_code(mistake: Mistake) -> None:
    for file, _, wrong in mistake.edits:
        changed = source(ROOT / file, mistake)
        assert wrong in changed and changed != (ROOT / file).read_text()
    file, _, function = f"tests/{mistake.test}".partition("::")
    assert f"def {function}(" in (ROOT / file).read_text()


def test_a_text_that_is_gone_is_refused_by_name() -> None:
    gone = replace(MISTAKES[0], name="gone", right="no such text")
    with pytest.raises(ValueError, match=f"'gone': its text stands 0 times in {gone.file}"):
        load(gone)


def copy_of(root: Path, mistake: Mistake | None) -> Path:
    """What the tests need of the project, with the mistake in it and the compiled programs of all test runs."""
    root.mkdir()
    for name in ("dsv3lab", "tests", "conf"):
        shutil.copytree(ROOT / name, root / name)  # with the bytecode: it is compared with times, which are copied
    shutil.copy(ROOT / "pyproject.toml", root)
    for file, _, _ in () if mistake is None else mistake.edits:
        (root / file).write_text(source(ROOT / file, mistake))
    programs = ROOT / ".cache" / "jax" / machine()
    programs.mkdir(parents=True, exist_ok=True)
    (root / ".cache" / "jax").mkdir(parents=True)
    (root / ".cache" / "jax" / machine()).symlink_to(programs)
    return root


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """For each mistake, and for the code as it is (""), how the named tests ended: outcome and error."""
    folder = tmp_path_factory.mktemp("museum")
    roots = {"": copy_of(folder / "right", None)}
    roots |= {mistake.name: copy_of(folder / mistake.name, mistake) for mistake in MISTAKES}
    tests = {mistake.name: [f"tests/{mistake.test}"] for mistake in MISTAKES}
    tests[""] = sorted({test for named in tests.values() for test in named})
    jobs = [{"root": str(root), "tests": tests[name]} for name, root in roots.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"PYTHONPATH": ""}
    runner = [sys.executable, str(Path(__file__).with_name("runner.py")), json.dumps(jobs)]
    done = subprocess.run(runner, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    by_root = json.loads(done.stdout.splitlines()[-1])
    return {name: by_root[str(root)] for name, root in roots.items()}


@pytest.mark.limit(240)  # the fixture runs a test in nearly thirty copies of the package
def test_the_right_code_passes_every_named_test(outcomes: dict[str, dict[str, list[str]]]) -> None:
    ended = outcomes[""]
    assert all(outcome == "passed" for outcome, _ in ended.values()), ended
    assert {f"tests/{mistake.test}" for mistake in MISTAKES} == {test.partition("[")[0] for test in ended}


@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_its_test_catches_it(mistake: Mistake, outcomes: dict[str, dict[str, list[str]]]) -> None:
    """By an assertion, not because the code no longer runs."""
    ended = outcomes[mistake.name]
    failed = {test: error for test, (outcome, error) in ended.items() if outcome == "failed"}
    assert failed, (mistake.title, ended)
    assert all("assert" in error.lower() or "not equal" in error.lower() for error in failed.values()), failed


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return Specimen.draw(dl.config("museum"), train_config(), batch=2, sequence_length=48)


@pytest.mark.limit(60)  # compiles every operation of the model once
def test_the_copy_without_a_mistake_computes_what_the_package_computes(specimen: Specimen) -> None:
    seen = look(load(None), specimen)
    output = specimen.model.forward(jnp.asarray(specimen.windows[:, :-1]), mtp=True)
    assert difference(np.asarray(specimen.model.unembed(output.hidden)), seen["logits"]) < 1e-5
    np.testing.assert_array_equal(output.loads, seen["loads"])
    assert type(load(None).adopt(specimen.model, specimen.config)) is not type(specimen.model)


@pytest.mark.limit(60)  # compiles every operation of the model once, if it is run alone
def test_a_switch_makes_the_mistake_that_its_number_says_and_no_other(specimen: Specimen) -> None:
    # A number of the configuration within another text, a list of two, one of several outputs, a function.
    kinds = ("wrong_mscale", "rope_first", "mtp_pre_norm", "sign_before_sum")
    mistakes = [mistake for mistake in MISTAKES if mistake.is_argument]
    copy = load_switched(mistakes)

    def apart(number: int, mistake: Mistake, wanted: Mistake | None) -> float:
        with copy.set_to(number):
            seen = look(replace(copy, mistake=mistake), specimen)
        expected = look(replace(load(wanted), mistake=mistake), specimen)
        return max(difference(expected[name], value) for name, value in seen.items())

    for mistake in map(BY_NAME.__getitem__, kinds):
        assert apart(mistakes.index(mistake), mistake, mistake) < 1e-6, mistake.name
    assert apart(-1, MISTAKES[0], None) < 1e-6 < apart(0, MISTAKES[0], None)


@pytest.mark.limit(120)  # compiles three training programs
def test_a_switched_training_is_that_of_the_mistakes_own_program(specimen: Specimen) -> None:
    batches = np.random.default_rng(1).integers(0, specimen.config.vocab_size, (3, 2, 25)).astype(np.int32)
    switched = train(load_switched([BY_NAME["reversed_scale"]]), specimen, batches)
    (alone,) = train(load(BY_NAME["reversed_scale"]), specimen, batches).values()
    (trained,) = train(load(BY_NAME["bias_trained"]), specimen, batches).values()
    right, wrong = switched[RIGHT], switched["reversed_scale"]
    assert set(switched) == {RIGHT, *OTHERS, "reversed_scale"}
    np.testing.assert_allclose(wrong.both, alone.both, rtol=1e-5)
    assert np.abs(wrong.both - right.both).min() > 1e-4  # or the comparison above would show nothing
    # The optimizer moves the bias after the first loss.
    np.testing.assert_allclose(trained.both[0], right.both[0], rtol=1e-6)
    assert all(np.isfinite(lesson.both).all() for lesson in switched.values())


@pytest.mark.parametrize(("name", "reason"), [("bias_trained", "several texts"), ("fp8_divided", "FP8 products only")])
def test_what_no_argument_can_choose_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot be chosen by an argument: it .*{reason}"):
        load_switched([BY_NAME[name]])


def test_a_text_that_an_earlier_mistake_changed_is_refused_by_name() -> None:
    outer, inner = BY_NAME["no_mscale"], BY_NAME["wrong_mscale"]
    text = (ROOT / outer.file).read_text()
    assert Switch([outer, inner]).text(outer.file, text).count("lambda") == text.count("lambda") + 4
    with pytest.raises(ValueError, match="'no_mscale': an earlier one of the switch has changed its text"):
        Switch([inner, outer]).text(outer.file, text)
