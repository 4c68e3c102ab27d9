"""`dsv3lab quickstart`: a first run in three questions. It shows the command and what it costs, and asks before it starts.

Only what there is can be chosen: the profiles and data sets of `conf/` that go together, and the devices that JAX finds
when it is asked in a process of its own. Without a terminal nothing is asked: the command for the given choices is
printed, and it is started only with `--yes`.
"""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3lab.config import CONF, ConfigError, DataConfig, RunConfig, StageConfig, build, nearest, read_yaml, runs_dir
from dsv3lab.config.text import clock
from dsv3lab.workbook import commands, doctor, pipeline
from dsv3lab.workbook.arguments import PHASES
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.progress import Durations

STOPPED = 130


@dataclass(frozen=True, kw_only=True)
class Option:
    """One answer to a question."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What will be run."""

    words: tuple[str, ...]
    """Overrides of `pipelines/all.py`."""
    platform: str
    """`cpu` where JAX would take something else by itself; empty leaves it the choice."""
    seconds: float | None
    """Usual time of all phases; `None` where nobody knows it."""
    on_cpu: bool
    data: str = ""
    """What another data set than the profile's changes in that."""

    @property
    def command(self) -> str:
        """What one would type."""
        return f"JAX_PLATFORMS={self.platform} " * bool(self.platform) + commands.pipeline("all", *self.words)


def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Entry point of `dsv3lab quickstart`: the exit status of the run, 0 if none was started, 130 if one was called off."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab quickstart",
        description="Choose size, data and device, see the command and its cost, and start it. Without a terminal "
        "nothing is asked: the command is printed, and started only with --yes.",
    )
    for name, what in (("profile", "size of the run"), ("data", "data set"), ("device", "device")):
        parser.add_argument(f"--{name}", help=f"{what}, by its name; it is not asked for then")
    parser.add_argument(
        "--yes", action="store_true", help="ask nothing, take the default of what is not given, and start"
    )
    args = parser.parse_args(list(argv))
    asks = not args.yes and sys.stdin is not None and sys.stdin.isatty()
    try:
        choice = _choose(args, conf, asks=asks)
        print("\n".join(["", *_cost(choice), f"command: {choice.command}"]))
        starts = args.yes or (asks and _confirmed())
    except (EOFError, KeyboardInterrupt):
        print("\nquickstart: called off, nothing was started", file=sys.stderr)
        return STOPPED
    if not starts:
        print("nothing was started" + ("" if asks else ": there is no terminal to ask at, and no --yes"))
        return 0
    if choice.platform:
        os.environ["JAX_PLATFORMS"] = choice.platform
    return pipeline.main_all(choice.words, conf=conf)


def _choose(args: argparse.Namespace, conf: Path, *, asks: bool) -> Choice:
    stages = _stages(conf)
    profiles = {name: compose([f"profile={name}"], conf=conf)[0] for name in _names(conf / "profile")}
    devices, on_cpu = _devices()
    only_gpu = [name for name, config in profiles.items() if config.profile.device == "gpu"]
    if on_cpu and args.profile in only_gpu:
        raise ConfigError(f"--profile: '{args.profile}' needs a GPU, and JAX finds none here")
    for name in only_gpu if on_cpu else ():
        del profiles[name]
    seconds = {name: _seconds(stages, config) for name, config in profiles.items()}
    offered = [
        Option(name=name, text=f"{_usual(seconds[name])}; {_comment(conf / 'profile' / f'{name}.yaml')}")
        for name in sorted(profiles, key=lambda name: (name in only_gpu, seconds[name] or 0.0))
    ]
    profile = _pick("profile", offered, given=args.profile, default="default", asks=asks)
    own = profiles[profile].data.name
    data = _pick("data", _data(profile, conf), given=args.data, default=own, asks=asks)
    if profile in only_gpu:
        devices = [device for device in devices if device.name != "cpu"]
    device = _pick("device", devices, given=args.device, default=devices[0].name, asks=asks)
    words = (f"profile={profile}", *([] if data == own else [f"data={data}"]))
    return Choice(
        words=words,
        platform="cpu" if device == "cpu" and not on_cpu else "",
        seconds=seconds[profile],
        on_cpu=device == "cpu",
        data="" if data == own else _instead(profiles[profile].data, words, conf),
    )


def _pick(what: str, options: Sequence[Option], *, given: str | None, default: str, asks: bool) -> str:
    """The name of one of the options: the given one, the only one, the answer to a question, or the default."""
    names = [option.name for option in options]
    if given is not None and given not in names:
        raise ConfigError(f"--{what}: no '{given}' here{nearest(given, names)}")
    default = default if default in names else names[0]
    if given is not None or len(names) == 1 or not asks:
        name = given if given is not None else default
        print(f"{what}: {name}: {options[names.index(name)].text}")
        return name
    print(f"{what}:")
    for number, option in enumerate(options, start=1):
        print(f"  {number}  {option.name:<9} {option.text}")
    while True:
        answer = input(f"{what}, by number or name [{default}]: ").strip()
        if not answer or answer in names:
            return answer or default
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        print(f"'{answer}' is none of them; give a number from 1 to {len(names)}, or a name")


def _confirmed() -> bool:
    while True:
        answer = input("start it now? [y/N]: ").strip().lower()
        if answer in ("", "n", "no", "y", "yes"):
            return answer in ("y", "yes")
        print(f"'{answer}' is neither yes nor no")


def _data(profile: str, conf: Path) -> list[Option]:
    """The data sets that the sizes of a profile can take."""
    options = []
    for name in _names(conf / "data"):
        try:
            compose([f"profile={profile}", f"data={name}"], conf=conf)
        except ConfigError:
            continue
        options.append(Option(name=name, text=_comment(conf / "data" / f"{name}.yaml")))
    return options


def _devices() -> tuple[list[Option], bool]:
    """What JAX can compute on, its own choice first; and whether that is the CPU.

    Raises:
        ConfigError: if JAX does not start.
    """
    answer = doctor.ask_jax()
    finding = doctor.check_devices(answer, nvidia=shutil.which("nvidia-smi") is not None)
    if isinstance(answer, str):
        raise ConfigError(f"{finding.text}; see `{commands.verb('doctor')}`")
    backend = str(answer["backend"])
    first = Option(name=backend, text=finding.text + (f" -> {finding.fix}" if finding.fix else ""))
    rest = [] if backend == "cpu" else [Option(name="cpu", text="the processor; the gates on speed are for it")]
    return [first, *rest], backend == "cpu"


def _stages(conf: Path) -> dict[str, StageConfig]:
    """All stages of all phases, as `phase/stage`."""
    phases = {name: read_yaml(conf / "phase" / f"{name}.yaml")["stages"] for name in PHASES}
    return {
        f"{phase}/{name}": build(StageConfig, stage, path=f"stages.{name}")
        for phase, stages in phases.items()
        for name, stage in stages.items()
    }


def _seconds(stages: Mapping[str, StageConfig], config: RunConfig) -> float | None:
    """Usual time of all phases with the profile of `config`: of earlier runs here, else that of the configuration.

    The configuration's times are those of a CPU: of a profile for a GPU only earlier runs know any.
    """
    durations, factors = Durations(runs_dir(), config.profile.name), config.profile.time_factors
    unknown = math.nan if config.profile.device == "gpu" else 1.0
    total = sum(
        durations.expected(name, unknown * stage.expected_s * factors.get(name.split("/")[1], 1.0))
        for name, stage in stages.items()
    )
    return None if math.isnan(total) else total


def _instead(own: DataConfig, words: Sequence[str], conf: Path) -> str:
    """What another data set changes in the time of a profile, which is known with its own alone."""
    data = compose(words, conf=conf)[0].data
    now, before = (sum(domain.max_bytes for domain in one.domains.values()) / 1e6 for one in (data, own))
    change = "less" if now < before else "more" if now > before else "another time"
    text = f"{now:.3g} MB of training text instead of {before:.3g} MB"
    return f"that is with data={own.name}; data={data.name} takes {change} ({text})"


def _usual(seconds: float | None) -> str:
    return "for a GPU, its time is not known yet" if seconds is None else f"about {clock(seconds)}"


def _cost(choice: Choice) -> list[str]:
    runs = runs_dir()
    existing = next(parent for parent in (runs, *runs.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / doctor.GIB
    where = "" if choice.on_cpu else "; on this device it may be another"
    known = f", as earlier runs took here, or as conf/phase says of 2 CPU cores{where}"
    return [
        f"time:    {_usual(choice.seconds)}{'' if choice.seconds is None else known}",
        *([f"         {choice.data}"] if choice.data else []),
        f"disk:    less than 1 GiB in {runs}; {free:.0f} GiB are free",
    ]


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _comment(path: Path) -> str:
    """The first sentence of the comment that says what a configuration file is."""
    lines = (line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line for line in lines if not line.startswith("@")), "").partition(". ")[0].rstrip(".")
