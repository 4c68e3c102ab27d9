"""Runs phase 4: `python pipelines/phase4.py [--plan] [--only STAGE] [--from STAGE] [Hydra overrides]`."""

import sys

from dsv3lab.workbook.pipeline import main

if __name__ == "__main__":
    sys.exit(main(["phase4", *sys.argv[1:]]))
