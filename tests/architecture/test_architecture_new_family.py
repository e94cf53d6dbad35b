"""A family that has nothing of CLIP or a U-Net is one file and two lines, and everything works with
it through the unchanged loop: done here to a copy of the package, and used.
"""

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_new_kind_of_network_is_its_file_and_two_tuples(copied, add_line, tmp_path):
    package, run = copied
    shutil.copy(HERE / "toy_family.py", package / "toy.py")
    add_line(
        package / "families" / "__init__.py",
        "FAMILIES: tuple[Family, ...] = (",
        "from konomi.toy import TOY\n\nFAMILIES: tuple[Family, ...] = (TOY, ",
    )
    add_line(
        package / "models" / "architectures" / "__init__.py",
        "ARCHITECTURES: tuple[Architecture, ...] = (",
        "from konomi.toy import TOY_ARCHITECTURE\n\n"
        "ARCHITECTURES: tuple[Architecture, ...] = (TOY_ARCHITECTURE, ",
    )
    used = run(module="toy_use", path=HERE)
    assert used.returncode == 0, used.stderr
