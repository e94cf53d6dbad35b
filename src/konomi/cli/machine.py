"""`konomi doctor`."""

from konomi.cli.arguments import ArgumentParser
from konomi.cli.plain import json_text


def doctor(arguments: list[str]) -> int:
    """Look at this machine. 1 where something keeps konomi from working."""
    parser = ArgumentParser(
        prog="konomi doctor",
        description="What this machine can run, and what would help.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)

    from konomi import tasks

    report = tasks.doctor()
    if options.json:
        print(json_text(report))
    else:
        from konomi.cli.report_view import print_doctor

        print_doctor(report)
    return 0 if all(row.ok for row in report.rows) else 1
