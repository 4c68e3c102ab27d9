"""What errors advise: the sentence that fits, where people see it, and only keys and commands that exist."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import cli
from dsv3lab.config import ROOT, GateConfig, build, plain
from dsv3lab.workbook import gates, hints, pipeline, record
from dsv3lab.workbook.compose import compose
from tests.workbook import lab, samples
from tests.workbook.lab import InProcess, two_stages

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SPANS = [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", PAGE)]
ADVICE = [hint.advice for hint in (*hints.STAGES, *hints.METRICS)]
SECTIONS = "model|data|train|eval|study|precision|parallel|profile|tracking"
KEY = re.compile(rf"(?<![\w./])((?:{SECTIONS})(?:\.\w+)+)(=[\w.+-]+)?")


@pytest.mark.parametrize(
    ("error", "lines", "words"),
    [
        (
            "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 4398046511104 bytes.",
            [],
            "memory ran out: lower",
        ),
        ("MemoryError: Unable to allocate 8.00 TiB", [], "train.micro_batch"),
        ("DeadKernelError: Kernel died", ["epoch 1"], "dmesg"),
        ("DeadKernelError: Kernel died", ["Termination timeout for all reduce RendezvousKey{..}"], "simulate_devices"),
        ("the executor ended by signal 9 without a result", [], "dmesg"),
        ("FloatingPointError: invalid value (nan) encountered in mul", [], "train.schedule.peak_lr"),
        ("Diverged: step 9: 5 steps in a row had no finite objective and gradient", [], "debug=true"),
        ("Diverged: step 9: the first non-finite value is in layers[1] moe output", [], "look at that array"),
        ("OSError: [Errno 28] No space left on device: 'x'", [], "DSV3LAB_RUNS"),
        ("ModuleNotFoundError: No module named 'optax'", [], "make doctor"),
        ("not done within its limit of 300 s (limit_s in conf/phase)", [], "limit_s"),
    ],
)
def test_a_stage_that_failed_says_what_to_do(error: str, lines: list[str], words: str) -> None:
    advised = hints.with_advice(error, lines)
    assert advised.startswith(error + "\n") and words in advised
    assert hints.split(advised) == (error, advised.partition(hints.MARK)[2])


@pytest.mark.parametrize("error", ["ValueError: boom", "KeyError: 'a ModuleNotFoundError'", "AssertionError: nan"])
def test_what_nobody_knows_has_no_advice(error: str) -> None:
    assert hints.with_advice(error, ["in the last line"]) == error and hints.split(error) == (error, "")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("train/maxvio", "raise train.loss.bias_update_speed"),
        ("train/dead_experts", "raise train.loss.bias_update_speed"),
        ("moe/maxvio_ratio", "raise bias_update_speed in conf/study"),
        ("eval/ratio_bigram", "train.tokens"),
        ("perf/data_wait_fraction", "DSV3LAB_RUNS"),
        ("perf/save_fraction", "the disk is slow"),
        ("perf/peak_fraction", "while nothing else computes"),
    ],
)
def test_a_gate_that_failed_says_what_to_raise(metric: str, words: str) -> None:
    gate = gate_of(metric, "<=", 0.5)
    result = judge(gate, [gates.Point(name=metric, value=0.9, step=None, time="")])
    assert result.status == "fail" and result.message.startswith(f"{metric} is 0.9") and words in result.message
    passed = judge(gate, [gates.Point(name=metric, value=0.1, step=None, time="")])
    assert passed.message == ""


def test_every_advice_on_a_metric_has_its_gate() -> None:
    phases = [samples.configuration(number)[0].phase for number in (1, 2, 3, 4)]
    met = {hints.of_metric(gate.metric) for phase in phases for gate in phase.gates.values()}
    assert {hint.advice for hint in hints.METRICS} <= met


def test_not_a_number_says_where_it_began() -> None:
    def point(step: int, **values: float) -> list[gates.Point]:
        return [gates.Point(name=f"train/{k}", value=v, step=step, time=str(step)) for k, v in values.items()]

    points = point(36, loss=2.0, total=2.0, grad_norm=1.0) + point(37, loss=2.0, total=2.0, grad_norm=math.inf)
    points += point(40, loss=math.nan, total=math.nan, grad_norm=math.nan)
    assert gates.began(points) == "step 37, in train/grad_norm"
    assert gates.began(points[:3]) == ""
    result = judge(gate_of("train/loss", "<=", 5.0), points)
    assert (
        result.status == "error" and "it began at step 37, in train/grad_norm: lower train.schedule" in result.message
    )
    counted = [*points, gates.Point(name="train/nonfinite_steps", value=4.0, step=40, time="")]
    assert (
        "it began at step 37, in train/grad_norm" in judge(gate_of("train/nonfinite_steps", "==", 0.0), counted).message
    )
    slow = [*points, gates.Point(name="perf/tokens_per_s", value=1.0, step=40, time="")]
    assert "began" not in judge(gate_of("perf/tokens_per_s", ">=", 10.0), slow).message  # another matter
    cold = [gates.Point(name="perf/speedup", value=math.nan, step=None, time="")]
    message = judge(gate_of("perf/speedup", ">=", 1.0), cold).message
    assert message.endswith("not a finite number; it began at no step, in perf/speedup")


def gate_of(metric: str, op: str, threshold: float) -> Any:
    return build(GateConfig, lab.gate("train", metric, op, threshold))


def judge(gate: Any, points: list[gates.Point]) -> gates.GateResult:
    return gates.evaluate(gate, "g", points=points, executed=True, device=samples.CPU)


def test_the_terminal_and_the_record_show_it(runs: Path, conf: Path, child: type[InProcess], capsys: Any) -> None:
    def exhausted(stage: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    child.acts = {"phase1/a": exhausted}
    assert pipeline.main(["phase1"], conf=conf) == 3
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("✗ phase1/a")]
    assert line.endswith("failed: RuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    (advice,) = [line for line in shown.splitlines() if hints.MARK.strip() in line]
    assert "train.micro_batch" in advice
    folder = lab.the_run(runs)
    stage = record.read(folder).stages[0]
    assert hints.split(stage.error)[1] in advice
    assert all(hints.MARK not in result.message for result in stage.results)
    assert "<strong>What to do:</strong> memory ran out" in (folder / "report.html").read_text()


@pytest.mark.limit(120)
def test_real_kernels_run_out_of_memory_and_are_killed(tmp_path: Path, runs: Path) -> None:
    conf = two_stages(tmp_path)
    exhausted = "import jax, jax.numpy as jnp\njax.jit(lambda: jnp.ones((1 << 20, 1 << 20)))().block_until_ready()"
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    for name, cell in (("a", exhausted), ("b", killed)):
        lab.write_notebook(tmp_path / f"{name}.ipynb", lab.stage_cells(name, cell))
    assert pipeline.main(["phase1"], conf=conf) == 3
    a, b = record.read(lab.the_run(runs)).stages
    assert a.status == "failed" and "RESOURCE_EXHAUSTED" in a.error and "memory ran out" in hints.split(a.error)[1]
    assert b.status == "dead_kernel" and "the system did, for memory" in hints.split(b.error)[1]


def test_every_key_that_is_named_is_one_of_the_configuration() -> None:
    named = {found.groups() for text in (*SPANS, *ADVICE) for found in KEY.finditer(text)}
    assert len(named) > 12
    known = plain(samples.configuration(2)[0])
    for key, value in named:
        place: Any = known
        for part in key.rstrip(".").split("."):
            assert isinstance(place, dict) and part in place, f"{key} is no key of the configuration"
            place = place[part]
        if value:
            compose([f"{key}{value}"], phase=2)
    for key in ("bias_update_speed", "moe_steps", "time_factors"):
        assert any(key in known[section] for section in ("study", "profile"))
    assert all("limit_s" in stage for stage in known["phase"]["stages"].values())


def test_every_command_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words for text in (PAGE, *ADVICE) for words in re.findall(r"`make ((?:[a-z-]+ ?)+)", text)}
    assert {word for words in named for word in words.split()} <= targets
    for verb in re.findall(r"`dsv3lab (\w+)`", PAGE):
        assert verb in cli.VERBS
    for path in re.findall(r"`((?:conf|notebooks|pipelines|docs)/[\w./]*)`", PAGE):
        assert (ROOT / path).exists(), path
    for profile in re.findall(r"`profile=(\w+)`|PRESET=(\w+)", PAGE):
        assert (ROOT / "conf" / "profile" / f"{''.join(profile)}.yaml").exists()
    gates_named = re.findall(r"gate `(\w+)`", PAGE)
    conf = {gate for number in (1, 2, 3, 4) for gate in samples.configuration(number)[0].phase.gates}
    assert gates_named and set(gates_named) <= conf


def test_the_search_for_a_nan_is_described_where_people_look() -> None:
    rows = [line for line in PAGE.splitlines() if "`debug=true`" in line]
    assert {"| NaN loss", "| gate `train_finite` fails"} <= {row.split(";")[0].split(" |")[0] for row in rows}
    assert any("never promoted" in row for row in PAGE.splitlines()[:4] if "`debug=true`" in row)
    assert "compile.log" in PAGE and "debug=true" in (ROOT / "README.md").read_text()
    for metric in ("train/nonfinite_steps", "stability/nonfinite_steps"):
        assert "debug=true" in hints.of_metric(metric)
    assert "debug=true" in hints.not_finite("step 3, in train/loss")


def test_the_page_has_every_row_of_the_seeds_table_and_the_readme_names_it() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", PAGE.partition("## Memory")[0], re.MULTILINE)
    assert [issue for issue, _ in rows[2:]] == [
        "OOM error",
        "Slow training",
        "Load imbalance",
        "NaN loss",
        "Import errors",
    ]
    assert "(docs/troubleshooting.md)" in (ROOT / "README.md").read_text()


def test_the_sentences_that_are_called_ours_are_in_the_code() -> None:
    sources = [*(ROOT / "dsv3lab").rglob("*.py"), ROOT / "Makefile"]
    text = " ".join(path.read_text() for path in sources)
    text = re.sub(r'"\s*(?:\n\s*)f?"', "", text)  # a sentence over several lines of code
    ours = PAGE.partition("## What this project says")[2].partition("## What Jupyter")[0]
    sentences = [
        s for row in ours.splitlines() if row.startswith("| `") for s in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    assert len(sentences) > 20
    for sentence in sentences:
        for fragment in sentence.split("…"):
            assert fragment.strip() in text, f"no such message: {sentence}"
