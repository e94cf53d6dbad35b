"""For all tests."""

from hypothesis import settings

# Tests assert behaviour, never seconds: a busy machine is no failure.
settings.register_profile("konomi", deadline=None)
settings.load_profile("konomi")
