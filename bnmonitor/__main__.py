"""``python -m bnmonitor``."""

import sys

from bnmonitor.cli import main

sys.exit(main())
