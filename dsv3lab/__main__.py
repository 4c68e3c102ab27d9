"""`python -m dsv3lab VERB` is `dsv3lab VERB`."""

import sys

from dsv3lab.cli import main

sys.exit(main())
