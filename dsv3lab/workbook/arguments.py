"""The command line of a pipeline, checked before anything runs: flags, overrides, stages and their order."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, RunConfig, nearest
from dsv3lab.workbook import inputs, trackers
from dsv3lab.workbook import waivers as waiver_files
from dsv3lab.workbook.compose import compose, overridden
from dsv3lab.workbook.waivers import Waiver

PHASES = ("phase1", "phase2", "phase3", "phase4")
FLAGS = ("--plan", "--only", "--from", "--help")
OPTIONS = ("resume", "force")
"""Settings of a pipeline that are written like overrides, and are no part of the configuration."""
HELP = """usage: {python} pipelines/{name}.py [--plan] [--only STAGE] [--from STAGE] [key=value ...]

  --plan         show stages, gates, thresholds and sources, and run nothing
  --only STAGE   run this stage; the others are taken from an earlier execution if their inputs are the same
  --from STAGE   run this stage and the later ones; the same holds for the others
  resume=true    reuse each stage of an earlier execution whose inputs are all the same, and say what changed of the others
  force=true     reuse nothing, not even the unfinished training of an execution that was stopped
  key=value      Hydra overrides, e.g. profile=long train.seed=1
  @FILE          those in a file, a YAML list

example: {python} pipelines/{name}.py {example}

exit status: 0 promoted, 1 a gate failed, 2 usage or configuration, 3 execution error, 4 an upstream phase is not
promoted, 75 preempted: run again, and what was saved is used"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What stands on the command line of a pipeline."""

    overrides: tuple[str, ...] = ()
    plan: bool = False
    only: str = ""
    start: str = ""
    resume: bool = False
    force: bool = False
    help: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A phase that is ready to run: everything that can be mistyped was checked."""

    config: RunConfig
    resolved: Mapping[str, Any]
    arguments: Arguments
    order: tuple[str, ...]
    chosen: tuple[str, ...]
    """Stages that are executed; the others are reused or left out."""
    waivers: tuple[Waiver, ...]
    overridden: tuple[str, ...] = ()
    """Where it measures or judges otherwise than the committed configuration says: reasons against promotion."""


JUDGES = ("gates", "baselines", "phase", "profile", "eval", "study")
"""Folders of the configuration that say what is measured and what it must reach."""


def prepare(name: str, arguments: Arguments, *, conf: Path) -> Prepared:
    """Compose the phase `name` ("phase1") and check the stages that the arguments name.

    Raises:
        ConfigError: one sentence with the nearest name.
    """
    if (arguments.resume or arguments.force) and (arguments.only or arguments.start):
        option = "resume=true" if arguments.resume else "force=true"
        raise ConfigError(f"{option} chooses the stages by itself: leave out --only and --from")
    config, resolved = compose(arguments.overrides, phase=int(name.removeprefix("phase")), conf=conf)
    if config.tracking.enabled:
        trackers.require(trackers.wanted(config))
    order = stage_order(config)
    chosen = list(order)
    asked = (arguments.only or arguments.start).removeprefix(f"{name}/")
    if asked:
        if asked not in order:
            flag = "--only" if arguments.only else "--from"
            raise ConfigError(f"{flag}: {name} has no stage '{asked}'{nearest(asked, order)}")
        chosen = [asked] if arguments.only else order[order.index(asked) :]
    found = waiver_files.load(conf / "waivers.yaml", phase=name)
    waiver_files.refuse(found, conf / "waivers.yaml", gates=config.phase.gates)
    return Prepared(
        config=config,
        resolved=resolved,
        arguments=arguments,
        order=tuple(order),
        chosen=tuple(chosen),
        waivers=tuple(found),
        overridden=tuple(_not_committed(config, arguments, conf) if config.profile.promotes else ()),
    )


def parse(argv: Sequence[str]) -> Arguments:
    """The arguments of a pipeline.

    Raises:
        ConfigError: for an unknown flag (with the nearest one), a flag without its stage, or a word that is no override.
    """
    values: dict[str, Any] = {}
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        flag, given, value = word.partition("=")
        if word in ("-h", "--help"):
            values["help"] = True
        elif word == "--plan":
            values["plan"] = True
        elif flag in ("--only", "--from"):
            stage = value if given else next(words, "")
            if not stage or stage.startswith("-"):
                raise ConfigError(f"{flag}: name the stage after it")
            values["only" if flag == "--only" else "start"] = stage
        elif word.startswith("-"):
            raise ConfigError(f"unknown flag {flag}{nearest(flag, FLAGS)}")
        elif not given and not word.startswith(("~", "@")):
            hint = nearest(f"--{word}", FLAGS) if f"--{word}" in FLAGS else "; overrides are written key=value"
            raise ConfigError(f"'{word}' is neither a flag nor an override{hint}")
        elif flag in OPTIONS:
            values[flag] = _switch(word, value)
        else:
            _refuse_mistyped_option(word, flag)
            overrides.append(word)
    if values.get("resume") and values.get("force"):
        raise ConfigError("resume=true reuses what it can and force=true reuses nothing: give one of them")
    if values.get("only") and values.get("start"):
        raise ConfigError("--only and --from exclude each other")
    return Arguments(overrides=tuple(overrides), **values)


def stage_order(config: RunConfig) -> list[str]:
    """The stages of a phase so that each follows those of the same phase that it needs; otherwise as configured.

    Raises:
        ConfigError: for a need that names no stage, or stages that need each other.
    """
    phase = config.phase
    order: list[str] = []
    left = list(phase.stages)
    while left:
        for name in left:
            mine = [need.split("/", 1)[1] for need in phase.stages[name].needs if need.startswith(f"{phase.name}/")]
            unknown = [need for need in mine if need not in phase.stages]
            if unknown:
                raise ConfigError(
                    f"phase.stages.{name}.needs: no stage '{unknown[0]}'{nearest(unknown[0], phase.stages)}"
                )
            if all(need in order for need in mine):
                order.append(name)
                left.remove(name)
                break
        else:
            raise ConfigError(f"phase.stages: {', '.join(left)} need each other")
    return order


def _switch(word: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"'{word}': give true or false")
    return value.lower() == "true"


def _refuse_mistyped_option(word: str, key: str) -> None:
    """Hydra would name the nearest section of the configuration, and never an option of the pipeline."""
    sections = [field.name for field in dataclasses.fields(RunConfig)]
    close = difflib.get_close_matches(key, [*OPTIONS, *sections], n=1, cutoff=0.7)
    if close and close[0] in OPTIONS and key not in sections:
        raise ConfigError(f"'{word}': unknown key {key}; did you mean '{close[0]}'?")


def _not_committed(config: RunConfig, arguments: Arguments, conf: Path) -> list[str]:
    """Why the record of this run would not be judged by what is committed."""
    edited = [f"{file} is not committed" for file in inputs.uncommitted(conf, *JUDGES)]
    return edited + (overridden(config, conf=conf) if arguments.overrides else [])
