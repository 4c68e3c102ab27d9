"""The exit statuses of the pipelines and of `dsv3lab`, and what an exception that nobody foresaw ends with."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")
PROMOTED, GATE_FAILED, USAGE, EXECUTION_ERROR, UPSTREAM_MISSING, PREEMPTED = 0, 1, 2, 3, 4, 75


def statuses_only(command: Callable[P, int]) -> Callable[P, int]:
    """`command`, whose unforeseen exceptions end with the status of an execution error: Python's own 1 says "a gate failed"."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            return reader_gone()
        except Exception as error:
            return unforeseen(error)

    return run


def reader_gone() -> int:
    """Nothing more is printed: `pipelines/phase1.py --plan | head` has what it wanted; returns the shell's status for it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def unforeseen(error: Exception) -> int:
    """Print where an exception came from, and that it is nobody's mistake but ours; returns the exit status."""
    traceback.print_exception(error)
    print(f"dsv3lab stopped on {type(error).__name__}, a defect: please report the lines above", file=sys.stderr)
    return EXECUTION_ERROR
