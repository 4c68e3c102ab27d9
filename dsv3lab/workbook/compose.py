"""Hydra composes `conf/`, then the strict builder makes the frozen configuration: nothing below this sees Hydra."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dsv3lab.config import CONF, ConfigError, RunConfig, build, diff, nearest, plain
from dsv3lab.config.run import read_yaml

_LOCK = threading.Lock()  # Hydra keeps one global instance for each process


def compose(
    overrides: Sequence[str] = (), *, phase: int | None = None, conf: Path = CONF
) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration from `conf/config.yaml` and Hydra overrides.

    Args:
        overrides: Hydra overrides, e.g. `["profile=ci", "train.tokens=100000"]`; `"@FILE"` stands for those in a file.
        phase: number of the phase whose stages and gates are taken; `None` leaves the choice to `overrides`.
        conf: the folder of the config groups.

    Returns:
        The frozen configuration, and the same as a plain dict of JSON values (for `config.resolved.yaml`).

    Raises:
        ConfigError: one sentence that names the override, key or value, with the nearest known name.
    """
    overrides = [word for override in overrides for word in _from_file(str(override))]
    with _LOCK:
        resolved = _resolve(overrides, phase=phase, conf=conf.resolve())
    return build(RunConfig, resolved), resolved


def overridden(config: RunConfig, *, conf: Path = CONF) -> list[str]:
    """Where `config` measures or judges otherwise than `conf` does for a profile of this name.

    Anybody may try another threshold, but promoted records are judged by the committed gates: a bar that was lowered
    or raised, a stage with another notebook and a profile that promotes only on the command line are all named; so are
    other held-out text, other sizes of what is timed or compared, fewer devices, and training without jit.

    Returns:
        One sentence for each difference; empty if there is none.
    """
    name, number = config.profile.name, config.phase.number
    known = [path.stem for path in (conf / "profile").glob("*.yaml")]
    if name not in known:
        return [f"profile.name is {name} on the command line, but there is no {conf.name}/profile/{name}.yaml"]
    committed, _ = compose([f"profile={name}"], phase=number, conf=conf)
    lines = _told("profile.", committed.profile, config.profile, f"in {conf.name}/profile/{name}.yaml")
    alone = f"with profile={name} alone"
    lines += _told("", {"debug": committed.debug}, {"debug": config.debug}, alone)
    for section in ("eval", "study", "parallel"):
        lines += _told(f"{section}.", getattr(committed, section), getattr(config, section), alone)
    lines += _told("train.checkpoint.", committed.train.checkpoint, config.train.checkpoint, alone)
    for kind, folder in (("stages", "phase"), ("gates", "gates")):
        file = f"{conf.name}/{folder}/phase{number}.yaml"
        held, given = getattr(committed.phase, kind), getattr(config.phase, kind)
        for entry in sorted(held.keys() | given.keys()):
            what = f"{kind.removesuffix('s')} {entry}"
            if entry in held and entry in given:
                lines += _told(f"{what}.", held[entry], given[entry], f"in {file}")
            else:
                lines.append(f"{what} is only {f'in {file}' if entry in held else 'on the command line'}")
    held, given = ({**plain(side.phase), "stages": {}, "gates": {}} for side in (committed, config))
    return lines + _told("phase.", held, given, f"in {conf.name}/phase/phase{number}.yaml")


def dump(resolved: Mapping[str, Any]) -> str:
    """The YAML text of a resolved configuration."""
    return yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True, width=120)


def load(path: Path) -> RunConfig:
    """The configuration in a `config.resolved.yaml`."""
    return build(RunConfig, read_yaml(path))


def _from_file(word: str) -> list[str]:
    """The overrides in the file that `@FILE` names, a YAML list; any other word is an override itself."""
    if not word.startswith("@"):
        return [word]
    path = Path(word[1:])
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"'{word}': {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{word}': {path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, list) or not all(isinstance(one, str) and not one.startswith("@") for one in value):
        raise ConfigError(f"'{word}': {path} is not a list of overrides such as '- train.seed=1'")
    return value


def parse_overrides(overrides: Sequence[str], *, sweeps: bool = False) -> list[Any]:
    """Hydra's own reading of overrides.

    Args:
        sweeps: whether an override may name several values.

    Raises:
        ConfigError: one sentence that names the override that cannot be used.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            why = " ".join(str(error).split("\nSee ")[0].split())
            raise ConfigError(
                f"override '{text}' cannot be read ({why}); write key=value and quote special signs"
            ) from None
        if override.is_sweep_override() and not sweeps:
            raise ConfigError(f"override '{text}' is a sweep; give one value, or quote it, or write a list as [1,2]")
        if override.key_or_group.split(".")[0].split("/")[0] == "hydra":
            raise ConfigError(f"override '{text}' has no effect here: runs are laid out by dsv3lab, not by Hydra")
        parsed.append(override)
    return parsed


def _told(prefix: str, held: Any, given: Any, where: str) -> list[str]:
    return [f"{prefix}{k} is {new} on the command line, {old} {where}" for k, (old, new) in diff(held, given).items()]


def _resolve(overrides: list[str], *, phase: int | None, conf: Path) -> dict[str, Any]:
    # Imported here: Hydra takes a third of a second, and most verbs of the command line do without it.
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    parsed = parse_overrides(overrides)
    if phase is not None:
        for override in parsed:
            if override.key_or_group in ("phase", "gates", "baselines"):
                raise ConfigError(f"'{override.input_line}': this pipeline runs phase {phase}; leave the override out")
        name = f"phase{phase}"
        overrides = [*overrides, f"phase={name}", f"gates@phase.gates={name}"]
        if (conf / "baselines").is_dir():  # before the first was accepted there is no such group
            overrides.append(f"baselines@phase.baseline={name}")
    before = GlobalHydra.instance().hydra  # whoever else uses Hydra in this process gets it back
    try:
        GlobalHydra.instance().clear()
        return _compose(overrides, conf)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: `model=nan` is read as a float
        raise ConfigError(_explain(error, parsed, overrides, conf)) from None
    finally:
        GlobalHydra.instance().hydra = before


def _compose(overrides: list[str], conf: Path) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = hydra_compose("config", overrides=overrides)
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    if not isinstance(resolved, dict):
        raise ConfigError(f"{conf / 'config.yaml'}: expected a mapping of keys")
    return {str(key): value for key, value in resolved.items()}


def _explain(error: Exception, parsed: list[Any], overrides: list[str], conf: Path) -> str:
    """One sentence for what Hydra says in several lines, with the nearest name."""
    for override in parsed:
        group = conf / override.key_or_group
        if group.is_dir() and not override.is_delete():
            value = str(override.input_line).partition("=")[2].strip("\"'")
            options = [path.stem for path in group.glob("*.yaml")]
            if value not in options:
                return f"'{override.input_line}': no '{value}' in {group.name}{nearest(value, options)}"
    groups = [override.input_line for override in parsed if (conf / override.key_or_group).is_dir()]
    try:
        known: Any = _compose([*groups, *overrides[len(parsed) :]], conf)
    except Exception:  # the files themselves do not compose: then the first message is the one that helps
        return _one_line(error)
    for override in parsed:
        if not (conf / override.key_or_group).is_dir() and not override.is_add():
            wrong = wrong_key(known, override.key_or_group)
            if wrong:
                return f"'{override.input_line}': {wrong}"
    return _one_line(error)


def wrong_key(known: Any, dotted: str) -> str:
    """What is wrong with a dotted key of the mapping `known`, with the nearest name; empty if nothing is."""
    path = ""
    for part in dotted.split("."):
        if not isinstance(known, Mapping):
            return f"{path} is a value and has no key '{part}'"
        above, path = path, f"{path}.{part}" if path else part
        if part not in known:
            return f"unknown key {path}{nearest(part, map(str, known), under=above)}"
        known = known[part]
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
