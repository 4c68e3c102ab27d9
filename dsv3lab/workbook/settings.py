"""`dsv3lab config`: print the resolved configuration, explain its keys, and read JSON in the seeds' layout."""

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, nearest, seed_json
from dsv3lab.config import help as helps
from dsv3lab.workbook import commands
from dsv3lab.workbook.compose import compose, dump, wrong_key
from dsv3lab.workbook.files import write_atomic

LEGEND = "[report]: DeepSeek-V3 technical report, arXiv:2412.19437; sections, equations, tables"
USAGE = """usage: dsv3lab config [show] [KEY ...] [--phase N] [key=value ...]
       dsv3lab config help [KEY ...]
       dsv3lab config from-json FILE [--out FILE] [key=value ...]
"""


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab config`; without a command it is `show`."""
    verbs = {"show": show, "help": explain, "from-json": from_json}
    if argv[:1] and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    if argv and argv[0][:1] != "-" and get_close_matches(argv[0], verbs, n=1, cutoff=0.7):
        raise ConfigError(f"no command '{argv[0]}'{nearest(argv[0], verbs)}")
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
    return show(argv)


def show(argv: list[str]) -> int:
    """`dsv3lab config show`: the configuration that overrides compose to, or the parts under some keys, as YAML."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab config show",
        description="Print the resolved configuration, or the parts of it that keys name.",
        epilog="example: dsv3lab config show train.schedule profile=long",
    )
    parser.add_argument("words", nargs="*", metavar="KEY | key=value", help="keys to print, and Hydra overrides")
    parser.add_argument("--phase", type=int, choices=(1, 2, 3, 4), help="with this phase's stages and gates")
    args = parser.parse_intermixed_args(argv)
    overrides = [word for word in args.words if "=" in word or word.startswith(("~", "@"))]
    _, resolved = compose(overrides, phase=args.phase)
    names = [word for word in args.words if word not in overrides]
    for name in names:
        wrong = wrong_key(resolved, name)
        if wrong:
            raise ConfigError(wrong)
    print(dump({name: _at(resolved, name) for name in names} if names else resolved), end="")
    return 0


def explain(argv: list[str]) -> int:
    """`dsv3lab config help`: type, unit, meaning, default and source of a key, of a group, or of everything."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab config help",
        description="Explain keys: type, unit, meaning, default with its file, and where in the paper it comes from.",
        epilog="example: dsv3lab config help train.loss",
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="a key, a group, or the end of a key (default: all)")
    args = parser.parse_args(argv)
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    given = helps.defaults()
    found = {path: key for word in args.keys for path, key in helps.match(word).items()} if args.keys else helps.keys()
    if any(key.group for key in found.values()):
        print(helps.outline(found, given=given, width=width))
    else:
        print("\n\n".join(helps.explain(key, given=given, width=width) for key in found.values()))
    if any("report" in key.source for key in found.values()):
        print(f"\n{LEGEND}")
    return 0


def from_json(argv: list[str]) -> int:
    """`dsv3lab config from-json`: a JSON configuration in the seeds' layout as a file of Hydra overrides."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab config from-json",
        description="Turn a JSON configuration (model, training, data, distributed) into overrides, each key mapped, "
        "without effect, or refused with its reason. Nothing is written if a key is refused.",
        epilog="example: dsv3lab config from-json tiny.json --out tiny.yaml",
    )
    what = "the JSON, then Hydra overrides that it is laid over, e.g. model=v3"
    parser.add_argument("words", nargs="+", metavar="FILE | key=value", help=what)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the overrides go (default: the terminal)")
    parser.add_argument("--partial", action="store_true", help="go on without the keys that are refused")
    args = parser.parse_intermixed_args(argv)
    source, before = Path(args.words[0]), args.words[1:]
    document = seed_json.load(source)
    _, base = compose(before)
    reading = (seed_json.read_partly if args.partial else seed_json.read)(document, base)
    refused = [f"  {name}: {reason}" for name, reason in reading.refused.items()]
    if refused and not args.partial:
        count = f"{len(refused)} key{'s are' if len(refused) > 1 else ' is'} refused"
        raise ConfigError(
            "\n".join([f"{source}: {count}, and nothing is written (--partial: go on without)", *refused])
        )
    compose([*before, *seed_json.overrides(reading)])
    text = _override_file(source, before, reading, base)
    if args.out is None:
        print(text, end="")
        return 0
    try:
        write_atomic(args.out, text)
    except OSError as error:
        raise ConfigError(f"{args.out}: cannot be written ({error.strerror})") from None
    print(f"{args.out}: {len(reading.mapped)} overrides; {len(reading.idle)} without effect, {len(refused)} refused")
    print("\n".join([*refused, f"next: {commands.pipeline('phase2', f'@{args.out}')}"]))
    return 0


def _override_file(source: Path, before: Sequence[str], reading: seed_json.Reading, base: Mapping[str, Any]) -> str:
    """A YAML list of overrides, each with the keys of the JSON that it comes from."""
    lines = [f"# Hydra overrides from {source.name}; pipelines and the verb train read them as @FILE."]
    lines += [f"- {_quoted(word)}" for word in before]
    for override, one in seed_json.overrides(reading).items():
        note = f": {one.note}" if one.note else ""
        lines.append(f"- {_quoted(override)}  # {', '.join(one.keys)}{note}")
    lines = lines if len(lines) > 1 else [*lines, "[]"]
    for title, names in (("refused", reading.refused), ("without effect", reading.idle)):
        lines += [f"# {title}: {name}: {' '.join(reason.split())}" for name, reason in names.items()]
    kept = ", ".join(f"{key}={seed_json.text(value)}" for key, value in seed_json.unsaid(reading, base).items())
    lines += (
        textwrap.wrap(f"not said, as in conf: {kept}", 118, initial_indent="# ", subsequent_indent="#   ")
        if kept
        else []
    )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A scalar of YAML."""
    return text if re.fullmatch(r"[\w.@/+-]+=[\w.+-]+", text) else json.dumps(text)


def _at(resolved: Mapping[str, Any], name: str) -> Any:
    value: Any = resolved
    for part in name.split("."):
        value = value[part]
    return value
