"""Runs phase 2: `python pipelines/phase2.py [--plan] [--only STAGE] [--from STAGE] [Hydra overrides]`."""

import sys

from dsv3lab.workbook.pipeline import main

if __name__ == "__main__":
    sys.exit(main(["phase2", *sys.argv[1:]]))
