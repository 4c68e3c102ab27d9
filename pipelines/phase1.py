"""Runs phase 1: `python pipelines/phase1.py [--plan] [--only STAGE] [--from STAGE] [Hydra overrides]`."""

import sys

from dsv3lab.workbook.pipeline import main

if __name__ == "__main__":
    sys.exit(main(["phase1", *sys.argv[1:]]))
