"""`python -m konomi`: the same as `konomi`."""

import sys

from konomi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
