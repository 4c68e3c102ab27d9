"""JSON configurations in the seeds' layout, read as Hydra overrides: each key is mapped, without effect, or refused.

Units are converted: steps into tokens and fractions of the budget, sequences of a micro-batch into parts of a batch.
"""

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3lab.config.build import ConfigError, build, nearest
from dsv3lab.config.paths import CONF
from dsv3lab.config.run import RunConfig, read_yaml
from dsv3lab.config.seed_derive import Mapped, Reading, derive, known, text
from dsv3lab.config.seed_keys import BLOCKS, NOT_BUILT, RULES, Derived, Idle, Off, To

_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*')
_NOTE = re.compile(r"(^|\.)(_comment\w*|description|citation)$")


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `// comments` to the end of a line are allowed, as the seeds have them.

    Raises:
        ConfigError: for a file that cannot be read, is not JSON, says a key twice or is no object.
    """
    try:
        bare = _COMMENT.sub(lambda found: found[1] or "", path.read_text(encoding="utf-8"))
        value = json.loads(bare, object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object with keys such as model, training, data, distributed")
    return value


def read_partly(document: Mapping[str, Any], base: Mapping[str, Any], *, conf: Path = CONF) -> Reading:
    """As `read`, but what is mapped is what the document says without the keys that are refused."""
    refused: dict[str, str] = {}
    while True:
        reading = read(document, base, without=refused, conf=conf)
        new = reading.refused.keys() - refused.keys()
        refused = reading.refused = refused | reading.refused
        if not new:
            return reading


def read(
    document: Mapping[str, Any], base: Mapping[str, Any], *, without: Collection[str] = (), conf: Path = CONF
) -> Reading:
    """Map every key of a JSON configuration.

    Args:
        document: as `load` returns it.
        base: the resolved configuration that the overrides will be laid over.
        without: keys of the JSON that are left out.
        conf: the folder of the config groups.
    """
    reading, flat = Reading(), {name: value for name, value in _flat(document, "") if name not in without}
    for name in [name for name in flat if _NOTE.search(name)]:
        reading.idle[name] = "a note"
        del flat[name]
    for name in [name for name in flat if name in BLOCKS]:
        block = flat.pop(name)
        off = isinstance(block, Mapping) and block.get("enabled") is False
        (reading.idle if off else reading.refused)[name] = "not enabled" if off else BLOCKS[name]
    for name, value in flat.items():
        _follow(name, value, reading)
    told = {name: value for name, value in flat.items() if isinstance(RULES.get(name), Derived)}
    derive(told, reading, base, conf=conf)
    done = {name for one in reading.mapped.values() for name in one.keys} | reading.idle.keys() | reading.refused.keys()
    for name in (name for name in told if not any(one == name or one.startswith(f"{name}[") for one in done)):
        reading.refused[name] = "it depends on a key that is refused"
    _check(reading, base, conf)
    return reading


def overrides(reading: Reading) -> dict[str, Mapped]:
    """Hydra override -> where it comes from, groups first."""
    found = {f"{target}={text(one.value)}": one for target, one in reading.mapped.items()}
    return dict(sorted(found.items(), key=lambda item: "." in item[0].split("=")[0]))


def unsaid(reading: Reading, base: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the model that the JSON does not give, if it gives any: they stay as they are in `base`."""
    if not any(target.startswith("model.") for target in reading.mapped):
        return {}
    return {key: value for key, value in base["model"].items() if f"model.{key}" not in reading.mapped}


def applied(base: Mapping[str, Any], mapped: Mapping[str, Mapped], *, conf: Path = CONF) -> dict[str, Any]:
    """`base` with the mapped values in it."""
    values = copy.deepcopy(dict(base))
    for target, one in sorted(mapped.items(), key=lambda item: "." in item[0]):
        if "." not in target:  # a file of a group, e.g. precision: bf16
            values[target] = read_yaml(conf / target / f"{one.value}.yaml")
            continue
        *above, last = target.split(".")
        place = values
        for part in above:
            place = place[part]
        place[last] = one.value
    return values


def _follow(name: str, value: Any, reading: Reading) -> None:
    """Do what the rule of one key says; a rule for several keys comes later."""
    rule = RULES.get(name)
    match rule:
        case None if any(known.startswith(f"{name}.") for known in [*RULES, *BLOCKS]):
            if isinstance(value, Mapping):  # what is not empty was taken apart
                reading.idle[name] = "it is empty"
            else:
                reading.refused[name] = f"expected an object with keys, got {text(value)}"
        case None:
            hint = nearest(name, [*RULES, *BLOCKS])
            reading.refused[name] = f"unknown key{hint if 'did you mean' in hint else ''}"
        case Idle():
            reading.idle[name] = rule.reason
        case Off():
            if _among(value, rule.values):
                reading.idle[name] = "as it is here"
            else:
                reading.refused[name] = rule.reason
        case To():
            missing = [target for target in rule.targets if target not in known()]
            if missing and _among(value, rule.off):
                reading.idle[name] = "as it is here"
            elif missing:
                reading.refused[name] = f"{missing[0]}, to which it belongs, {NOT_BUILT}"
            else:
                for target in rule.targets:
                    reading.set(target, value, name)
        case Derived():
            pass


def _check(reading: Reading, base: Mapping[str, Any], conf: Path) -> None:
    """Refuse the keys without which the strict builder would have taken the configuration, with its sentence."""
    while reading.mapped and (error := _failure(base, reading.mapped, conf)):
        single = [t for t in reading.mapped if _failure(base, _without(reading.mapped, t), conf) != error]
        guilty = [t for t in single if not reading.mapped[t].note] or single or list(reading.mapped)
        names = dict.fromkeys(name for target in guilty for name in reading.mapped[target].keys)
        for name in names:
            reading.refused[name] = _in_json(error)
        reading.mapped = {t: one for t, one in reading.mapped.items() if not set(one.keys) & set(names)}


def _in_json(error: str) -> str:
    """A sentence of the builder, whose way out is named as the JSON has it."""
    return re.sub(
        r"choose (model=\w+), or raise it", r"add model.mla.max_context_length, or put `\1` behind the file", error
    )


def _failure(base: Mapping[str, Any], mapped: Mapping[str, Mapped], conf: Path) -> str:
    try:
        build(RunConfig, applied(base, mapped, conf=conf))
    except ConfigError as error:
        return str(error)
    return ""


def _without(mapped: Mapping[str, Mapped], target: str) -> dict[str, Mapped]:
    return {name: one for name, one in mapped.items() if name != target}


def _flat(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Keys with their whole path; a block that is taken whole stays together."""
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping) and item and here not in BLOCKS:
            yield from _flat(item, here)
        else:
            yield here, item


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index])]
    if twice:
        raise ValueError(f"the key '{twice[0]}' is there twice")
    return dict(pairs)


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `allowed`; true and 1, false and 0 are not the same."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
