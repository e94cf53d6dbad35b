"""For all tests."""

import os

from hypothesis import settings

# As the command line does, before torch is loaded: spinning threads make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tests assert behaviour, never seconds: a busy machine is no failure.
settings.register_profile("konomi", deadline=None)
settings.load_profile("konomi")
