"""`train.micro_batch=auto`: the largest micro-batch that fits, found by trial.

Each divisor of the batch is compiled, from the whole batch downwards, until the compiler says that arguments, outputs
and temporaries of the step fit into what is free. Nothing is executed for that, so nothing can run out of memory; the
step that fits is compiled once, and it is the one that trains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import psutil

from dsv3lab.config import ConfigError

SHARE = 0.8
"""Of the free memory, what a step may take: the rest is for validation, checkpoints and what the allocator cannot join."""
UNKNOWN = "more than the compiler could have"
_CGROUP = Path("/sys/fs/cgroup")


class OutOfMemory(RuntimeError):
    """Something of a training that does not fit into the memory of its device; the message says what to lower."""


@dataclass(frozen=True)
class Tried:
    """One micro-batch: the sequences in it, what its step needs, and whether that fits."""

    micro_batch: int
    bytes: int | None
    """`None`: the compiler itself ran out of memory."""
    fits: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen, of what was tried, under which limit."""

    micro_batch: int
    tried: tuple[Tried, ...]
    limit_bytes: int

    def table(self) -> list[str]:
        """One line for each trial, and one for the choice."""
        rows = [
            f"micro-batch {one.micro_batch:>5}: "
            + (f"{one.bytes / 2**20:>10,.0f} MiB" if one.bytes is not None else UNKNOWN)
            + self._verdict(one)
            for one in self.tried
        ]
        return [*rows, f"train.micro_batch=auto: {self.micro_batch} sequences at once"]

    def _verdict(self, one: Tried) -> str:
        if one.bytes is None:
            return ""
        return " fits" if one.fits else f" does not fit into {self.limit_bytes / 2**20:,.0f} MiB"


def choose(
    batch_size: int, needs: Callable[[int], int | None], *, free_bytes: int, smaller: Sequence[int] = ()
) -> Choice:
    """The largest divisor of `batch_size` whose step needs at most `SHARE` of `free_bytes`.

    Args:
        batch_size: sequences in one optimizer step on this device.
        needs: micro-batch -> bytes of its step, see `step_bytes`; `None` if it cannot even be compiled.
        free_bytes: memory that is free on the device before the step's arguments are there.
        smaller: batch sizes of the ramp, which must split, too, or be one part.

    Raises:
        ConfigError: if not even one sequence at a time fits.
    """
    limit, tried = int(SHARE * free_bytes), []
    for micro_batch in divisors(batch_size):
        if any(size > micro_batch and size % micro_batch for size in smaller):
            continue
        need = needs(micro_batch)
        tried.append(Tried(micro_batch, need, fits=need is not None and need <= limit))
        if tried[-1].fits:
            return Choice(micro_batch, tuple(tried), limit)
    least = tried[-1].bytes
    allowed = f"and {limit / 2**20:,.0f} MiB ({SHARE:.0%} of what is free) may be used"
    needed = UNKNOWN if least is None else f"{least / 2**20:,.0f} MiB, {allowed}"
    raise ConfigError(
        f"train.micro_batch: one sequence at a time needs {needed}; set train.remat=full, or take a smaller model or "
        "data.sequence_length"
    )


def divisors(number: int) -> Sequence[int]:
    """All divisors, the largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def step_bytes(compile_step: Callable[[], Any]) -> int | None:
    """Arguments, outputs and temporaries of a compiled program; `None` if compiling ran out of memory.

    An output that takes the place of a donated argument is counted once.
    """
    try:
        stats = compile_step().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes


def free_bytes() -> int:
    """Memory that this process can still take: of its device, or on CPU of the machine and of its control group."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min([psutil.virtual_memory().available, *_left_in_group(_CGROUP)])


@contextmanager
def in_memory(doing: str, *, then: str) -> Iterator[None]:
    """Say of what runs out of memory in here what it was doing and what to lower.

    Args:
        doing: what is done in here.
        then: what helps.

    Raises:
        OutOfMemory: in one sentence, in the place of XLA's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{doing}: out of memory ({str(error).splitlines()[0]}); {then}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA says of this error that memory was exhausted."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _left_in_group(folder: Path) -> list[int]:
    """What a container or a job of a cluster leaves to its processes; nothing where there is no such limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    cached = int(statistics.get("inactive_file", 0))  # files that were read; the system gives them up when asked
    return [] if limit == "max" else [int(limit) - used + cached]
