"""What every key of the configuration means: read from the dataclasses and from the files under `conf/`.

A field's text is the `doc` of its `within(...)` or the docstring under it; that of a group of keys may be its class's.
Where a published source stands behind it, the text ends with the source in brackets: `[report 4.2, Eq. 25]`.
"""

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3lab.config.build import ConfigError, nearest
from dsv3lab.config.paths import CONF
from dsv3lab.config.run import RunConfig, read_yaml

FREE = ("<name>", "<number>")
"""Stand in a path for the names that a mapping is free to choose, and for a place in a list."""

_SOURCE = re.compile(r"\s*\[([^\[\]]+)\](\.?)\s*$")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key, or one group of keys."""

    path: str
    type: str
    unit: str
    meaning: str
    source: str
    """Paper, section, table or equation; empty if no publication stands behind it."""
    group: bool
    """Whether keys stand below it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value and the file under `conf/` that gives it."""

    value: Any
    file: str


def keys(cls: type = RunConfig, path: str = "") -> dict[str, Key]:
    """Every key below `cls` with its whole path, in the order of the dataclasses; groups come before their keys."""
    return {key.path: key for key in _keys(cls, path)}


def match(word: str) -> dict[str, Key]:
    """The keys that `word` names: a path with everything below it, or the end of one or several paths.

    Raises:
        ConfigError: if there is none, with the nearest.
    """
    known = keys()
    generic = _generic(word, known)
    if generic:
        shown = {path: dataclasses.replace(key, path=word + path.removeprefix(generic)) for path, key in known.items()}
        return {key.path: key for path, key in shown.items() if path == generic or path.startswith(f"{generic}.")}
    found = {path: key for path, key in known.items() if path.endswith(f".{word}")}
    if found:
        return found
    leaves = {path.split(".")[-1]: path for path in known}
    raise ConfigError(f"no key '{word}' in the configuration{nearest(word, [*known, *leaves])}") from None


def defaults(conf: Path = CONF) -> dict[str, Setting]:
    """Each key's value in the composition without overrides, and the file that gives it."""
    found: dict[str, Setting] = {}
    for group, name, package in _choices(conf):
        if name and (conf / group / f"{name}.yaml").exists():  # else an optional file that nobody has written yet
            found |= _settings(conf, group, name, package)
    own = {key: value for key, value in read_yaml(conf / "config.yaml").items() if key != "defaults"}
    return found | {path: Setting(value=value, file=f"{conf.name}/config.yaml") for path, value in _leaves(own, "")}


def elsewhere(path: str, conf: Path = CONF) -> dict[str, Setting]:
    """What the files that the default does not choose give for a key, as `model=v3` -> setting."""
    found = {}
    for group, chosen, package in _choices(conf):
        for file in sorted((conf / group).glob("*.yaml")):
            setting = _settings(conf, group, file.stem, package).get(path)
            if setting and file.stem != chosen:
                found[f"{group}={file.stem}"] = setting
    return found


def explain(key: Key, *, given: Mapping[str, Setting], conf: Path = CONF, width: int = 100) -> str:
    """Everything about one key, in lines of at most `width` columns."""
    rows = {"meaning": key.meaning, "type": key.type, "unit": key.unit or "none"}
    if key.path in given:
        rows["default"] = f"{_shown(given[key.path].value)}   ({given[key.path].file})"
        others = [f"{name} {_shown(setting.value)}" for name, setting in elsewhere(key.path, conf).items()]
        rows |= {"elsewhere": ", ".join(others)} if others else {}
    else:
        rows["default"] = "each has its own" if any(word in key.path for word in FREE) else "see below it"
    rows |= {"source": key.source} if key.source else {}
    lines = [key.path]
    for name, text in rows.items():
        indent = " " * 13
        lines += textwrap.wrap(text, width, initial_indent=f"  {name:<11}", subsequent_indent=indent)
    return "\n".join(lines)


def outline(found: Mapping[str, Key], *, given: Mapping[str, Setting], width: int = 100) -> str:
    """Groups and their keys, each with its default and meaning, in lines of at most `width` columns."""
    lines: list[str] = []
    for key in found.values():
        source = f" [{key.source}]" if key.source else ""
        if key.group:
            title = textwrap.wrap(f"{key.path}: {key.meaning}{source}", width, subsequent_indent="  ")
            lines += ([""] if lines else []) + title
            continue
        setting = given.get(key.path)
        value = f" = {_shown(setting.value)}" if setting else ""
        where = f"; {setting.file}" if setting else ""
        lines += textwrap.wrap(
            f"{key.path}{value}", width, initial_indent="  ", subsequent_indent="      ", max_lines=2
        )
        unit = f", {key.unit}" if key.unit else ""
        text = f"{key.meaning}{source} ({key.type}{unit}{where})"
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _keys(cls: type, path: str) -> Iterator[Key]:
    hints, texts = typing.get_type_hints(cls), _docstrings(cls)
    for field in dataclasses.fields(cls):
        here = f"{path}.{field.name}" if path else field.name
        hint, below = hints[field.name], _below(hints[field.name])
        text = field.metadata.get("doc") or texts.get(field.name) or (_first(below[0]) if below else "")
        meaning, source = _split(text)
        yield Key(
            path=here,
            type=_type(hint, field.metadata),
            unit=field.metadata.get("unit", ""),
            meaning=meaning,
            source=source,
            group=below is not None,
        )
        if below and below[1]:
            here = f"{here}.{below[1]}"
            meaning, source = _split(_first(below[0]))
            yield Key(path=here, type="group of keys", unit="", meaning=meaning, source=source, group=True)
        if below:
            yield from _keys(below[0], here)


def _below(hint: Any) -> tuple[type, str] | None:
    """The dataclass that a hint holds, and what stands in the path before its keys: nothing, or one of `FREE`."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, ""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((found for found in map(_below, arguments) if found), None)
    held = {dict: arguments[1:], tuple: arguments[:1]}.get(origin, ()) if origin else ()
    if held and dataclasses.is_dataclass(held[0]) and isinstance(held[0], type):
        return held[0], FREE[0] if origin is dict else FREE[1]
    return None


@functools.cache
def _docstrings(cls: type) -> dict[str, str]:
    """Field -> the docstring under it, also of the dataclasses that `cls` extends."""
    found = {}
    for base in cls.__bases__:
        found |= _docstrings(base) if dataclasses.is_dataclass(base) else {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _first(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _split(text: str) -> tuple[str, str]:
    """Meaning and source of a text that may end with `[source]`."""
    found = _SOURCE.search(text)
    if not found:
        return text, ""
    return text[: found.start()] + found[2], found[1]


def _type(hint: Any, metadata: Mapping[str, Any]) -> str:
    """A type with its choices or range, for people: `int, at least 1`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part, metadata) for part in arguments)
    if origin is typing.Literal:
        return str(arguments[0]) if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"list of {_type(arguments[0], {})}"
    if origin is dict:
        return f"mapping of names to {_type(arguments[1], {})}"
    if dataclasses.is_dataclass(hint):
        return "group of keys"
    low, high = metadata.get("low"), metadata.get("high")
    ends = [f"at least {low:g}"] if low is not None else []
    ends += [f"at most {high:g}"] if high is not None else []
    return ", ".join([getattr(hint, "__name__", str(hint)), *ends])


def _generic(word: str, known: Mapping[str, Key]) -> str:
    """The path in `known` that `word` is, with `<name>` where `word` has a name of its own choice; empty if none."""
    parts = word.split(".")
    for path in known:
        pattern = path.split(".")
        if len(pattern) == len(parts) and all(p in (w, *FREE) for p, w in zip(pattern, parts, strict=True)):
            return path
    return ""


def _choices(conf: Path) -> list[tuple[str, str | None, str]]:
    """Group, chosen file (`None`: none) and package of each entry of the defaults in `conf/config.yaml`, in order."""
    found = []
    for entry in read_yaml(conf / "config.yaml")["defaults"]:
        if isinstance(entry, dict):
            ((group, name),) = entry.items()
            group, _, package = str(group).removeprefix("optional ").partition("@")
            found.append((group, name, package or group.replace("/", ".")))
    return found


@functools.cache
def _settings(conf: Path, group: str, name: str, package: str) -> dict[str, Setting]:
    file = conf / group / f"{name}.yaml"
    if "# @package _global_" in file.read_text().splitlines()[:1]:
        package = ""
    values = read_yaml(file)
    values.pop("defaults", None)
    label = f"{conf.name}/{group}/{name}.yaml"
    return {path: Setting(value=value, file=label) for path, value in _leaves(values, package)}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value[:8]))}{f', … {len(value)} in all' if len(value) > 8 else ''}]"
    return str(value)
