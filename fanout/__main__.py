"""`python -P -m fanout` is the command `fanout`."""

import sys

from fanout.cli import main

sys.exit(main())
