"""Runs all four phases in order: `python pipelines/all.py [--plan] [--from PHASE] [Hydra overrides]`."""

import sys

from dsv3lab.workbook.pipeline import main_all

if __name__ == "__main__":
    sys.exit(main_all(sys.argv[1:]))
