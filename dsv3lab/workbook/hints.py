"""What to do about the errors that people meet: data, appended to a stage's error and to a failed gate's message.

The keys that the sentences name are those of the configuration (a test composes it); docs/troubleshooting.md says more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MARK = "what to do: "
"""What the advice below an error begins with."""


@dataclass(frozen=True, kw_only=True)
class Hint:
    """One piece of advice and where it belongs."""

    pattern: str
    """A regular expression: of a stage's error and last lines, or of the name of a gate's metric."""
    advice: str


MEMORY = (
    "lower train.micro_batch (sequences computed at once; auto finds how many fit) or set train.remat=full; then "
    "lower data.sequence_length, train.loss.vocab_chunk, eval.batch_size or model.num_hidden_layers, or "
    "choose precision=bf16"
)
UNSTABLE = (
    "lower train.schedule.peak_lr, lengthen train.schedule.warmup or lower train.optimizer.clip_norm; if it begins at "
    "the first step, look at what has just been changed in the model"
)
DEBUG = "debug=true trains without jit (slow, never promoted) and names the first array that is not finite"
BALANCE = (
    "raise train.loss.bias_update_speed (gamma: a short run needs more than the report's 0.001), then "
    "train.loss.balance_alpha"
)
ALONE = "run it again while nothing else computes"

STAGES = (
    Hint(
        pattern=r"Termination timeout for .*Rendezvous|RendezvousKey",
        advice="collectives on simulated devices starved: call dsv3lab.parallel.simulate_devices before anything "
        "computes, wait for each step (jax.block_until_ready), or lower parallel.data",
    ),
    Hint(
        pattern=r"DeadKernelError|by signal 9 without a result",
        advice="if nobody ended it, the system did, for memory (`dmesg | grep -i 'out of memory'` names the process): "
        f"{MEMORY}",
    ),
    Hint(
        pattern=r"RESOURCE_EXHAUSTED|\bMemoryError\b|[Oo]ut of memory|std::bad_alloc|Cannot allocate memory",
        advice=f"memory ran out: {MEMORY}",
    ),
    Hint(
        pattern=r"the first non-finite value is in",
        advice=f"look at that array and at what is computed into it; if the model is as it was, {UNSTABLE}",
    ),
    Hint(
        pattern=r"^Diverged|^FloatingPointError|invalid value \((nan|inf)\)",
        advice=f"a value is not a finite number: {UNSTABLE}; {DEBUG}",
    ),
    Hint(
        pattern=r"No space left on device|\[Errno 28\]|only \d+ of \d+ bytes",
        advice="free some space, or export DSV3LAB_RUNS=ANOTHER_FOLDER; training goes on from its last checkpoint",
    ),
    Hint(
        pattern=r"^(ModuleNotFoundError|ImportError|NoSuchKernel)\b",
        advice="`make doctor` says what this environment lacks; `make clean-all setup` makes it anew",
    ),
    Hint(
        pattern=r"not done within its limit of",
        advice="an earlier line of the log says how far it came; run it while nothing else computes, or raise the "
        "stage's limit_s in conf/phase",
    ),
)
"""For a stage that did not finish; the first that fits."""

METRICS = (
    Hint(
        pattern=r"^moe/maxvio",
        advice="raise bias_update_speed in conf/study (study.bias_update_speed=0.05 tries it, and is not promoted), or "
        "moe_steps of the profile",
    ),
    Hint(pattern=r"maxvio|dead_experts", advice=BALANCE),
    Hint(pattern=r"nonfinite", advice=f"{UNSTABLE}; {DEBUG}"),
    Hint(pattern=r"^eval/ratio_", advice="train longer: raise train.tokens, or make run PRESET=long"),
    Hint(pattern=r"data_wait", advice="put the runs folder on a local disk: export DSV3LAB_RUNS=ANOTHER_FOLDER"),
    Hint(
        pattern=r"save_fraction",
        advice="the disk is slow: export DSV3LAB_RUNS=ANOTHER_FOLDER on a local one, and run it while nothing else writes",
    ),
    Hint(pattern=r"speedup|relative_throughput|time_ratio", advice=ALONE),
    Hint(
        pattern=r"peak_fraction|tokens_per_s",
        advice=f"{ALONE}; in a training, larger parts of a batch (train.micro_batch up, train.batch_size up) fill a "
        "device better",
    ),
)
"""For a gate that failed; the first that fits the name of its metric."""


def with_advice(error: str, lines: Sequence[str] = ()) -> str:
    """`error` with what to do about it on a line of its own, if anything is known.

    Args:
        error: the stage's error, name and message.
        lines: the last lines that it wrote.
    """
    found = _first(STAGES, "\n".join([error, *lines]))
    return f"{error}\n{MARK}{found}" if found else error


def split(error: str) -> tuple[str, str]:
    """An error of `with_advice` as error and advice; the latter is empty if there is none."""
    text, _, advice = error.rpartition(f"\n{MARK}")
    return (text, advice) if text else (error, "")


def of_metric(name: str) -> str:
    """What to do about a failed gate on the metric `name`; empty if nothing is known."""
    return _first(METRICS, name)


def not_finite(began: str) -> str:
    """Where NaN or an infinite number began (`gates.began`), and what to do if it was in a training."""
    trained = re.search(r"train/|loss|grad", began)
    return f"it began at {began}{f': {UNSTABLE}; {DEBUG}' if trained else ''}"


def counts_not_finite(metric: str) -> bool:
    """Whether a metric counts what is not a finite number, so that its gate asks where that began."""
    return "nonfinite" in metric


def _first(hints: Sequence[Hint], text: str) -> str:
    return next((hint.advice for hint in hints if re.search(hint.pattern, text)), "")
