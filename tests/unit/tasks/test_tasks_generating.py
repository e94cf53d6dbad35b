"""`konomi generate`, without its command line."""

import subprocess
import sys

HEAVY = ("diffusers", "transformers", "accelerate", "torch._dynamo", "sympy")
"""What a picture does not need, and what would take most of the time of a small one to import."""


def test_a_picture_is_drawn_without_importing_diffusers_or_transformers(tmp_path):
    code = f"""
import sys
from konomi import tasks
(path,) = tasks.generate(["a cat"], base="tiny", steps=1, size="64", output={str(tmp_path)!r})
assert path.is_file()
print([name for name in {HEAVY} if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr
