"""``python -m specproxy``."""

import sys

from specproxy.cli.main import main

sys.exit(main())
