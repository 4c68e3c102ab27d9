"""Strict construction of the frozen config dataclasses from plain mappings.

YAML holds every value, the dataclasses hold every name, type, unit and check, and no default stands in both.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
SHOWN = 40
"""Most names that are listed where none is near."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what to do."""


def within(low: float | None = None, high: float | None = None, *, unit: str = "", doc: str = "") -> Any:
    """A dataclass field that carries its inclusive range, unit and meaning.

    Args:
        low: smallest value allowed (`None`: unbounded).
        high: largest value allowed (`None`: unbounded).
        unit: unit of the value, e.g. "tokens".
        doc: what the value means; a published source stands in brackets at its end: `[report 4.2, Eq. 25]`.
    """
    return dataclasses.field(metadata={"low": low, "high": high, "unit": unit, "doc": doc})


def build(cls: type[T], mapping: Mapping[str, Any], *, path: str = "") -> T:
    """Make the frozen dataclass `cls` from `mapping`, refusing whatever does not fit.

    Every key must be given, except those of fields whose default is `None`: what most lack need not be spelled out.

    Args:
        cls: a frozen dataclass of the config room.
        mapping: plain values (nested mappings for nested dataclasses).
        path: where in the whole configuration `mapping` stands, for messages.

    Raises:
        ConfigError: for an unknown key (with the nearest name), a missing key, a wrong type or a value out of range.
    """
    where = path or cls.__name__
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping of keys, got {_show(mapping)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{_join(path, key)}: unknown key{nearest(str(key), fields)}")
    # What may be `None` may say so by its absence; nothing else has a default here.
    missing = [name for name, f in fields.items() if name not in mapping and f.default is not None]
    if missing:
        raise ConfigError(f"{_join(path, missing[0])}: missing key; {where} needs {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    given = {name: f for name, f in fields.items() if name in mapping}
    values = {name: _value(hints[name], mapping[name], _join(path, name), f.metadata) for name, f in given.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


def nearest(word: str, known: typing.Iterable[str], *, under: str = "") -> str:
    """`; did you mean 'x'?` for the closest name in `known`, else a list of the known names.

    Args:
        word: what was written.
        known: what there is.
        under: the key that the names stand below, which belongs to the answer.
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{_join(under, close[0])}'?"
    shown = sorted(names)[:SHOWN]
    return f"; known: {', '.join(shown)}{f', … {len(names)} in all' if len(names) > SHOWN else ''}"


def plain(config: Any) -> Any:
    """The config as JSON values: dataclasses become dicts, tuples become lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def canonical(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(config: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a config, mapping or list."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()


def diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The keys on which two configs differ, as dotted path -> (old, new); `None` where a side lacks the key.

    What is `None` may say so by its absence, so that these two are no difference.
    """
    left, right = dict(_leaves(plain(old), "")), dict(_leaves(plain(new), ""))
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _leaves(value: Any, path: str) -> typing.Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, _join(path, key))
    else:
        yield path, value


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _value(hint: Any, value: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        words = [word for a in rest if typing.get_origin(a) is typing.Literal for word in typing.get_args(a)]
        if len(rest) > 1 and isinstance(value, str) and words:
            if value not in words:
                raise ConfigError(f"{path}: {value!r} is not allowed{nearest(value, words)}; a number fits, too")
            return value
        rest = rest if len(rest) == 1 else [a for a in rest if typing.get_origin(a) is not typing.Literal]
        if len(rest) != 1:
            raise TypeError(f"{path}: config fields are one type, words or None, not {hint}")
        return _value(rest[0], value, path, metadata)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path=path)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{path}: {value!r} is not allowed{nearest(str(value), map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise ConfigError(f"{path}: expected a list, got {_show(value)}")
        return tuple(_value(args[0], item, f"{path}[{i}]", metadata) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {_show(value)}")
        return {str(key): _value(args[1], item, _join(path, key), metadata) for key, item in value.items()}
    return _scalar(hint, value, path, metadata)


def _scalar(hint: Any, value: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        advice = "; YAML reads 3e-4 as text: write 3.0e-4" if hint is float and isinstance(value, str) else ""
        raise ConfigError(f"{path}: expected {hint.__name__}, got {_show(value)}{advice}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path}: must be finite, got {value!r}")
    unit = f" {metadata['unit']}" if metadata.get("unit") else ""
    if metadata.get("low") is not None and value < metadata["low"]:
        raise ConfigError(f"{path}: {value!r}{unit} is below the smallest allowed, {metadata['low']}")
    if metadata.get("high") is not None and value > metadata["high"]:
        raise ConfigError(f"{path}: {value!r}{unit} is above the largest allowed, {metadata['high']}")
    return value
