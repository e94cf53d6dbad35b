"""The contract tests with their bases on the card: what every method keeps to, bit for bit where
the tests say so.
"""

import os
import subprocess
import sys
from xml.etree import ElementTree

from bench.gpu.rows import asked, fail

TESTS = ("tests/contracts/test_contracts_methods.py",)
SETTINGS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONDONTWRITEBYTECODE": "1"}
"""The first is what cuBLAS needs to give the same bits twice."""


def main() -> int:
    """A row with the counts, and one for each test that failed."""
    part = asked("contracts")
    report = part.output / "contracts.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        *TESTS,
        "-o",
        "addopts=-q -p no:xdist -m 'not slow'",
        "--tb=short",
    ]
    command += ["-o", "filterwarnings=ignore", f"--junitxml={report}", "-p", "no:cacheprovider"]
    if part.small:
        # A rehearsal: one family, one method, one contract.
        command += ["-k", "learns and sd1 and lora"]
    try:
        # Nobody waits for a rehearsal.
        subprocess.run(
            command,
            env=os.environ | SETTINGS | {"KONOMI_TEST_DEVICE": part.device},
            timeout=None if part.small else part.left,
        )
    except subprocess.TimeoutExpired:
        fail(part, f"not done in {part.seconds:.0f} s")
    if not report.exists():
        fail(part, "pytest wrote no report; see contracts.log")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    part.write(**counts, seconds=float(suite.get("time", 0)))
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                part.write(
                    test=str(case.get("name")),
                    why=str(found.get("message"))[:160].replace("\n", " "),
                )
    return 1 if counts["failures"] or counts["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
