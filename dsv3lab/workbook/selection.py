"""Which earlier executions stand for the stages that were not asked for; settled before anything runs."""

import tempfile
from pathlib import Path

from dsv3lab.config import ConfigError
from dsv3lab.workbook import commands, reuse
from dsv3lab.workbook.arguments import Prepared
from dsv3lab.workbook.inputs import Inputs
from dsv3lab.workbook.record import Upstream


def reusable(prepared: Prepared, *, upstream: Upstream | None, runs: Path, now: Inputs) -> dict[str, reuse.Reusable]:
    """Each stage that `--only` or `--from` leaves to earlier executions -> the one that stands for it.

    Without all of them the phase cannot pass, and no gate would be to blame: it is refused instead of run.

    Args:
        prepared: the phase and what was asked for.
        upstream: the record that the phase builds on.
        runs: the folder of all outputs; it is only read.
        now: the hashes of code and lock files.

    Raises:
        ConfigError: with the first stage that cannot be reused, why, and the command that runs what is missing.
    """
    phase = prepared.config.phase
    found: dict[str, reuse.Reusable] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dsv3lab-") as view:  # the stages side by side, as in the new run folder
        for name in (name for name in prepared.order if name not in prepared.chosen):
            anew = [
                n for n in phase.stages[name].needs if n.removeprefix(f"{phase.name}/") in {*prepared.chosen, *missing}
            ]
            if anew:
                missing[name] = f"it reads {anew[0]}, which is to be run anew"
                continue
            one = reuse.find(name, config=prepared.config, upstream=upstream, runs=runs, target=Path(view), now=now)
            if isinstance(one, str):
                missing[name] = one
            else:
                found[name] = one
                (Path(view) / name).symlink_to(one.folder / name, target_is_directory=True)
    if missing:
        stage, why = next(iter(missing.items()))
        raise ConfigError(
            f"stage {stage} was not asked for and cannot be reused: {why}; run {_command(prepared, missing)}"
        )
    return found


def _command(prepared: Prepared, missing: dict[str, str]) -> str:
    """The command that runs what was asked for and what is missing, and no more than the flags allow."""
    first = next(name for name in prepared.order if name in missing or name in prepared.chosen)
    flag = () if first == prepared.order[0] else ("--from", first)
    return f"`{commands.pipeline(prepared.config.phase.name, *flag, *prepared.arguments.overrides)}`"
