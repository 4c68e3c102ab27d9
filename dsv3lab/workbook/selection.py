"""Which earlier executions stand for which stages, and why the others run anew; settled before anything runs."""

import dataclasses
import tempfile
from pathlib import Path

from dsv3lab.config import ConfigError
from dsv3lab.workbook import commands, reuse
from dsv3lab.workbook.arguments import Prepared
from dsv3lab.workbook.inputs import Inputs
from dsv3lab.workbook.promotion import Ground


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What becomes of the stages of a phase."""

    reused: dict[str, reuse.Reusable]
    anew: dict[str, str]
    """Stage that `resume=true` could not reuse -> why."""


def select(prepared: Prepared, *, ground: Ground, runs: Path, now: Inputs) -> Selection:
    """The stages that are taken from earlier executions: those not asked for, or with `resume=true` all that still stand.

    With `--only` or `--from` the phase cannot pass without all the stages that were left to earlier executions, and no
    gate would be to blame: it is refused instead of run.

    Args:
        prepared: the phase and what was asked for.
        ground: the records that the phase builds on.
        runs: the folder of all outputs; it is only read.
        now: the hashes of code and lock files.

    Raises:
        ConfigError: with the first stage that cannot be reused, why, and the command that runs what is missing.
    """
    phase = prepared.config.phase
    left = [name for name in prepared.order if prepared.arguments.resume or name not in prepared.chosen]
    running = {name for name in prepared.order if name not in left}
    earlier = reuse.newest(phase.name, runs) if left else []
    found: dict[str, reuse.Reusable] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dsv3lab-") as view:  # the stages side by side, as in the new run folder
        today = reuse.Today(
            config=prepared.config,
            waivers=prepared.waivers,
            inputs=now,
            upstream=ground.stages,
            runs=runs,
            target=Path(view),
            device=reuse.here,
        )
        for name in left:
            anew = [n for n in phase.stages[name].needs if n.removeprefix(f"{phase.name}/") in {*running, *missing}]
            one = f"it reads {anew[0]}, which is to be run anew" if anew else reuse.find(name, earlier, today)
            if isinstance(one, str):
                missing[name] = one
            else:
                found[name] = one
                (Path(view) / name).symlink_to(one.folder / name, target_is_directory=True)
    if missing and not prepared.arguments.resume:
        stage, why = next(iter(missing.items()))
        raise ConfigError(
            f"stage {stage} was not asked for and cannot be reused: {why}; run {_command(prepared, missing)}"
        )
    return Selection(reused=found, anew=missing)


def _command(prepared: Prepared, missing: dict[str, str]) -> str:
    """The command that runs what was asked for and what is missing, and no more than the flags allow."""
    first = next(name for name in prepared.order if name in missing or name in prepared.chosen)
    flag = () if first == prepared.order[0] else ("--from", first)
    return f"`{commands.pipeline(prepared.config.phase.name, *flag, *prepared.arguments.overrides)}`"
