"""`python -m dsv3lab.data`: prepare a dataset, or print (and record) the digest of its corpus."""

import argparse
import sys
from pathlib import Path

from dsv3lab.config import CONF, ConfigError, DataConfig, build, read_yaml
from dsv3lab.data import DataError, collect, compare, prepare
from dsv3lab.data.digests import write


def main(arguments: list[str] | None = None) -> int:
    """Run the command. The last line printed is the prepared folder.

    Returns:
        0, or 2 for a configuration or data error, printed in one line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dsv3lab.data",
        description="Prepare the dataset of a data configuration.",
        epilog="example: python -m dsv3lab.data --config conf/data/local.yaml",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=CONF / "data" / "local.yaml",
        help="YAML with the data keys, alone or under `data` (default: conf/data/local.yaml)",
    )
    parser.add_argument("--root", type=Path, help="where datasets are kept (default: runs/data)")
    parser.add_argument("--digest", action="store_true", help="only print the digest of the corpus and compare it")
    parser.add_argument("--write", action="store_true", help="with --digest: record it in conf/corpus_digests.yaml")
    chosen = parser.parse_args(arguments)
    if chosen.write and not chosen.digest:
        parser.error("--write needs --digest")
    try:
        values = read_yaml(chosen.config)
        config = build(DataConfig, values.get("data", values), path="data")
        if not chosen.digest:
            print(prepare(config, chosen.root, progress=lambda line: print(line, flush=True)).folder)
            return 0
        digest = collect(config).digest()
        if chosen.write:
            write(config, digest)
        print(digest)
        print(compare(config, digest).message)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
