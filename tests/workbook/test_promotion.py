"""The chain of promotions: what may enter, what a crash leaves, and what a phase may build on."""

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ConfigError, RunConfig
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import inputs, promotion, record
from dsv3lab.workbook.gates import Device
from dsv3lab.workbook.promotion import UpstreamError
from tests.workbook import samples


def test_promotions_form_a_chain(runs: Path) -> None:
    samples.two_phases(runs)
    chain = chains.read_chain(runs)
    assert [line.phase for line in chain] == ["phase1", "phase2"]
    assert chain[0].prev_sha256 == chains.START and chain[1].prev_sha256 == chain[0].sha256
    assert not Path(chain[0].record).is_absolute()
    assert chain[0].scope == samples.CPU
    assert json.loads((runs / chains.HEAD).read_text()) == {"count": 2, "sha256": chain[1].sha256}


def test_what_may_not_pass_is_not_promoted(runs: Path) -> None:
    config, resolved = samples.configuration(1, "profile=ci")
    folder, written = samples.execution(runs, config, resolved, promote=False)
    assert written.passed
    allowed, reasons = promotion.decide(written)
    assert not allowed and reasons == ["profile 'ci' is never promoted"]
    with pytest.raises(record.RecordError, match="never promoted"):
        promotion.promote(folder, written, runs)
    assert not (runs / chains.CHAIN).exists() and not (folder / chains.NAME).exists()


def test_a_failed_gate_is_a_reason(runs: Path) -> None:
    folder, written = samples.execution(runs, *samples.configuration(1), promote=False)
    first = written.stages[0]
    results = (dataclasses.replace(first.results[0], status="fail", message="too slow"), *first.results[1:])
    changed = dataclasses.replace(written, stages=(dataclasses.replace(first, results=results), *written.stages[1:]))
    allowed, (reason,) = promotion.decide(changed)
    assert not allowed and "too slow" in reason
    with pytest.raises(record.RecordError):
        promotion.promote(folder, changed, runs)
    (folder / record.NAME).write_text("{}")
    with pytest.raises(record.RecordError):
        promotion.promote(folder, written, runs)


def test_a_promotion_opens_later_phases_on_its_own_kind_of_device_only(runs: Path) -> None:
    samples.execution(runs, *samples.configuration(1))
    config, resolved = samples.configuration(2)
    above = promotion.ground(config, runs).upstream
    assert above is not None and above.scope == samples.CPU
    _, written = samples.execution(runs, config, resolved, upstream=above, promote=False)
    fewer = dataclasses.replace(above, scope=Device(kind="cpu", count=1))
    assert promotion.decide(dataclasses.replace(written, upstream=fewer)) == (True, [])
    for elsewhere in (Device(kind="NVIDIA H100", count=8), Device()):
        other = dataclasses.replace(written, upstream=dataclasses.replace(above, scope=elsewhere))
        allowed, (reason,) = promotion.decide(other)
        assert not allowed and f"ran on 8 x cpu, but phase1 stands for {elsewhere.count} x {elsewhere.kind}" in reason
    on_gpu = dataclasses.replace(written, scope=Device(kind="NVIDIA H100", count=1))
    assert "run phase1 on NVIDIA H100 first" in promotion.decide(on_gpu)[1][0]
    assert promotion.decide(dataclasses.replace(on_gpu, upstream=fewer))[0] is False
    same = dataclasses.replace(fewer, scope=Device(kind="NVIDIA A100", count=8))
    assert promotion.decide(dataclasses.replace(on_gpu, upstream=same)) == (True, [])


def test_code_that_changes_while_a_phase_runs_is_a_reason(runs: Path) -> None:
    config, _ = samples.configuration(1)
    now = inputs.read_inputs(1)
    at_start = dataclasses.replace(now, code={**now.code, "dsv3lab/__init__.py": "0" * 64})
    drafted = record.draft(runs / "x", config=config, stages=[], upstream=None, started="", ended="", inputs=at_start)
    assert drafted.drift == ("dsv3lab/__init__.py changed",) and drafted.inputs == at_start
    assert any("while the phase ran" in reason for reason in promotion.decide(drafted)[1])


class Crash(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["line", "promotion.json", "head"])
def test_a_crash_at_any_moment_is_completed(runs: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    samples.execution(runs, *samples.configuration(1))
    config, resolved = samples.configuration(2)
    above = promotion.ground(config, runs).upstream
    folder, written = samples.execution(runs, config, resolved, upstream=above, promote=False)
    writes = {"line": 0, "promotion.json": 0, "head": 1}
    write = promotion.write_atomic
    calls = iter(range(9))

    def killed(path: Path, text: str) -> None:
        if next(calls) == writes[moment]:
            raise Crash
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "write_atomic", killed)
        if moment == "line":
            patch.setattr(promotion, "append_line", lambda *_, **__: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            promotion.promote(folder, written, runs)
    done = promotion.recover(runs)
    assert len(chains.read_chain(runs)) == (1 if moment == "line" else 2)
    assert bool(done) == (moment != "line")
    assert (folder / chains.NAME).exists() == (moment != "line")
    assert promotion.recover(runs) == []


def test_a_line_torn_by_a_crash_is_taken_back(runs: Path) -> None:
    samples.execution(runs, *samples.configuration(1))
    chain = runs / chains.CHAIN
    whole = chain.read_bytes()
    chain.write_bytes(whole + whole[:50])
    with pytest.raises(chains.ChainError, match="torn"):
        chains.read_chain(runs)
    assert "took back" in promotion.recover(runs)[0]
    assert chain.read_bytes() == whole


def test_recovery_does_not_heal_tampering(runs: Path) -> None:
    samples.two_phases(runs)
    chain = runs / chains.CHAIN
    lines = chain.read_text().splitlines(keepends=True)
    for text in ("".join(lines[:1]), lines[1], "".join([*lines, lines[1]]), "".join(lines)[:-1], ""):
        chain.write_text(text)
        promotion.recover(runs)
        assert chain.read_text() == text
        with pytest.raises(chains.ChainError):
            chains.read_chain(runs)


def test_phase_one_builds_on_nothing_and_phase_two_on_phase_one(runs: Path) -> None:
    first, first_resolved = samples.configuration(1)
    second, _ = samples.configuration(2)
    assert promotion.ground(first, runs).upstream is None
    with pytest.raises(UpstreamError, match=r"phase1 is not promoted.*pipelines/phase1\.py"):
        promotion.ground(second, runs)
    folder, _ = samples.execution(runs, first, first_resolved)
    above = promotion.ground(second, runs).upstream
    assert above is not None and above.phase == "phase1" and above.promoted
    assert runs / above.record == folder / record.NAME and above.record_sha256 == record.sha256(folder)


def test_a_phase_checks_what_its_stages_need(runs: Path) -> None:
    one, two = samples.two_phases(runs)
    third, third_resolved = samples.configuration(3)
    samples.execution(runs, third, third_resolved, upstream=promotion.ground(third, runs).upstream)
    fourth, _ = samples.configuration(4)
    above = promotion.ground(fourth, runs).upstream
    assert above is not None and above.phase == "phase3" and above.needs == {"phase2/train": record.sha256(two)}
    assert promotion.find_stage("phase2/train", fourth.profile, runs) == two / "train"
    (two / "train" / "checkpoint" / "weights.bin").write_bytes(b"other weights")
    with pytest.raises(UpstreamError, match=r"weights\.bin: changed since phase2"):
        promotion.ground(fourth, runs)
    assert one.exists()


def test_another_configuration_makes_stale_and_is_named(runs: Path) -> None:
    samples.two_phases(runs)
    other, _ = samples.configuration(3, "train.tokens=4096")
    with pytest.raises(UpstreamError, match=r"phase2 is stale: train\.tokens \d+ -> 4096.*same overrides"):
        promotion.ground(other, runs)
    unrelated, _ = samples.configuration(3, "tracking.enabled=false", "profile.generate_tokens=3")
    assert promotion.ground(unrelated, runs).upstream is not None


def test_other_measuring_makes_stale_too(runs: Path) -> None:
    samples.two_phases(runs)
    other, _ = samples.configuration(3, "eval.every=7")
    with pytest.raises(UpstreamError, match=r"phase2 is stale: eval\.every \d+ -> 7"):
        promotion.ground(other, runs)


@pytest.mark.parametrize("profile", ["default", "ci"])
def test_who_built_on_an_older_promotion_is_stale(runs: Path, monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    numbers = itertools.count(1)
    monkeypatch.setattr(samples.files, "new_name", lambda: f"run-{next(numbers):04}")  # names sort by seconds only
    configurations = [samples.configuration(number, f"profile={profile}") for number in (1, 2, 3, 4)]
    (first, second, third, (fourth, _)) = configurations
    promote = profile == "default"

    def execute(of: tuple[RunConfig, dict[str, Any]]) -> None:
        samples.execution(runs, *of, upstream=promotion.ground(of[0], runs).upstream, promote=promote)

    for one in (first, second, third):
        execute(one)
    assert promotion.ground(fourth, runs).upstream is not None
    kind = "promotion" if promote else "execution"
    execute(second)
    with pytest.raises(
        UpstreamError, match=rf"phase3 was built on an older {kind} of phase2; run .*phase3\.py.* again"
    ):
        promotion.ground(fourth, runs)
    execute(third)
    assert promotion.ground(fourth, runs).upstream is not None
    execute(first)
    with pytest.raises(
        UpstreamError, match=rf"phase2 was built on an older {kind} of phase1; run .*phase2\.py.* again"
    ):
        promotion.ground(fourth, runs)


def test_what_a_phase_builds_on_comes_from_one_reading(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.two_phases(runs)
    third, fourth = samples.configuration(3), samples.configuration(4)[0]
    samples.execution(runs, *third, upstream=promotion.ground(third[0], runs).upstream)
    read = chains.read_chain

    def overtaken(folder: Path) -> list[chains.Promotion]:
        chain = read(folder)
        monkeypatch.setattr(promotion, "read_chain", read)
        samples.execution(
            runs, *samples.configuration(2), upstream=promotion.ground(samples.configuration(2)[0], runs).upstream
        )
        return chain

    monkeypatch.setattr(promotion, "read_chain", overtaken)
    ground = promotion.ground(fourth, runs)
    assert ground.upstream is not None and len(read(runs)) == 4
    assert ground.upstream.needs == {"phase2/train": record.sha256(ground.stages["phase2/train"].parent)}
    assert ground.stages["phase2/train"].parent.name == Path(read(runs)[1].record).parent.name


def test_changed_code_makes_stale_and_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.two_phases(runs)
    config, _ = samples.configuration(3)
    now = inputs.read_inputs(2)
    edited = dataclasses.replace(now, code={**now.code, "dsv3lab/train/step.py": "0" * 64})
    monkeypatch.setattr(promotion, "read_inputs", lambda _: edited)
    with pytest.raises(UpstreamError, match=r"phase2 is stale: dsv3lab/train/step\.py"):
        promotion.ground(config, runs)


def test_other_versions_make_stale_and_are_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.two_phases(runs)
    config, _ = samples.configuration(3)
    now = inputs.read_environment()
    other = dataclasses.replace(now, python="3.99.1", packages={**now.packages, "jax": "9.9"})
    monkeypatch.setattr(promotion, "read_environment", lambda: other)
    with pytest.raises(UpstreamError, match=r"jax .* -> 9\.9"):
        promotion.ground(config, runs)


def test_variables_that_change_what_jax_computes_make_stale(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.two_phases(runs)
    config, _ = samples.configuration(3)
    now = inputs.read_environment()
    set_now = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true", "JAX_COMPILATION_CACHE_DIR": "cache", "HOME": "home"}
    other = dataclasses.replace(now, variables=now.variables | inputs.read_variables(set_now))
    monkeypatch.setattr(promotion, "read_environment", lambda: other)
    with pytest.raises(
        UpstreamError, match=r"phase2 is stale: XLA_FLAGS absent -> --xla_cpu_enable_fast_math=true; run"
    ):
        promotion.ground(config, runs)


def test_profiles_do_not_mix(runs: Path) -> None:
    samples.two_phases(runs)
    other, _ = samples.configuration(2, "profile=ci")
    with pytest.raises(UpstreamError, match=r"no finished execution with profile 'ci'.*profile=ci"):
        promotion.ground(other, runs)


def test_a_profile_that_does_not_promote_builds_on_its_own_executions(runs: Path) -> None:
    config, resolved = samples.configuration(1, "profile=ci")
    folder, _ = samples.execution(runs, config, resolved, promote=False)
    second, second_resolved = samples.configuration(2, "profile=ci")
    above = promotion.ground(second, runs).upstream
    assert above is not None and not above.promoted and runs / above.record == folder / record.NAME
    two, _ = samples.execution(runs, second, second_resolved, upstream=above, promote=False)
    assert promotion.find_stage("phase2/train", second.profile, runs) == two / "train"
    with pytest.raises(UpstreamError):
        promotion.find_stage("phase2/nonsense", second.profile, runs)
    with pytest.raises(ConfigError):
        promotion.find_stage("train", second.profile, runs)


def test_a_damaged_chain_stops_the_next_phase(runs: Path) -> None:
    samples.two_phases(runs)
    config, _ = samples.configuration(3)
    (runs / chains.HEAD).write_text("{}")
    with pytest.raises(UpstreamError, match=r"promotions\.head"):
        promotion.ground(config, runs)


def test_writers_at_the_same_time_append_one_after_the_other(runs: Path) -> None:
    config, resolved = samples.configuration(1)
    made = [samples.execution(runs, config, resolved, promote=False) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: promotion.promote(pair[0], pair[1], runs), made))
    assert [line.index for line in chains.read_chain(runs)] == [0, 1, 2, 3]
