"""`dsv3lab config`: print the resolved configuration, and explain its keys."""

import argparse
import shutil
from collections.abc import Mapping
from typing import Any

from dsv3lab.config import ConfigError
from dsv3lab.config import help as helps
from dsv3lab.workbook.compose import compose, dump, wrong_key

LEGEND = "[report]: DeepSeek-V3 technical report, arXiv:2412.19437; sections, equations, tables"
USAGE = """usage: dsv3lab config [show] [KEY ...] [--phase N] [key=value ...]
       dsv3lab config help [KEY ...]
"""


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab config`; without a command it is `show`."""
    verbs = {"show": show, "help": explain}
    if argv[:1] and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
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
    overrides = [word for word in args.words if "=" in word or word.startswith("~")]
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


def _at(resolved: Mapping[str, Any], name: str) -> Any:
    value: Any = resolved
    for part in name.split("."):
        value = value[part]
    return value
