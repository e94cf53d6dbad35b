"""`python -m konomi`."""

import sys

from konomi.cli.main import main

sys.exit(main())
