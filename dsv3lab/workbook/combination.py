"""One combination of a sweep: `python -m dsv3lab.workbook.combination`, started by `dsv3lab sweep`.

It is an execution of a phase like any other, in a folder of the sweep, with its own record; it builds on no promotion and
is never promoted. The sweep holds the phase's lock.
"""

import argparse
import sys
from pathlib import Path

from dsv3lab.config import ConfigError, runs_dir
from dsv3lab.workbook import grid
from dsv3lab.workbook.execute import die_with_parent
from dsv3lab.workbook.pipeline import Execution
from dsv3lab.workbook.process import counted_interrupts
from dsv3lab.workbook.promotion import UpstreamError
from dsv3lab.workbook.statuses import EXECUTION_ERROR, PREEMPTED, UPSTREAM_MISSING, USAGE, statuses_only


@statuses_only
def main(argv: list[str]) -> int:
    """Run one combination; 0 if it ran, whatever its gates say."""
    parser = argparse.ArgumentParser(prog="python -m dsv3lab.workbook.combination")
    parser.add_argument("phase", help="e.g. phase2")
    parser.add_argument("folder", type=Path, help="the run folder, below that of the sweep")
    parser.add_argument("--conf", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--parent", type=int, help="process that this one ends with")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args(argv)
    if args.parent:
        die_with_parent(args.parent)
    runs = runs_dir()
    try:
        sweep = args.folder.parent.parent.name
        prepared = grid.check(args.phase, args.overrides, only=args.only, sweep=sweep, conf=args.conf)
        ground = grid.ground(prepared, runs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    except UpstreamError as error:
        print(error, file=sys.stderr)
        return UPSTREAM_MISSING
    with counted_interrupts() as interrupts:
        execution = Execution(prepared=prepared, runs=runs, ground=ground, interrupts=interrupts, place=args.folder)
        status = execution.run().status
    return status if status in (EXECUTION_ERROR, PREEMPTED) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
