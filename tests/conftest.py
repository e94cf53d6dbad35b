"""For all tests."""

import os

from hypothesis import settings

# As the command line does, before torch is loaded: spinning threads make a busy machine ten times
# slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# One process of tests for each core, so one thread for each of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests look for the English messages, whatever the locale.
os.environ["KONOMI_LANGUAGE"] = "en"

# A test that looks at previews asks for them.
os.environ.setdefault("KONOMI_PREVIEWS", "off")

# And so does one that looks at the page of a run.
os.environ.setdefault("KONOMI_REPORT", "off")

# Files of tests need not outlive a power cut. That it is called, and when, has tests of its own,
# which put their own in its place; commands in processes of their own call the real one.
os.fsync = lambda descriptor: None

# Tests assert behaviour, never seconds: a busy machine is no failure.
settings.register_profile("konomi", deadline=None)
settings.load_profile("konomi")
