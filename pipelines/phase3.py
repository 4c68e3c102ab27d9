"""Runs phase 3: `python pipelines/phase3.py [--plan] [--only STAGE] [--from STAGE] [Hydra overrides]`."""

import sys

from dsv3lab.workbook.pipeline import main

if __name__ == "__main__":
    sys.exit(main(["phase3", *sys.argv[1:]]))
