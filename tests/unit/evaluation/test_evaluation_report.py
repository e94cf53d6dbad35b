"""The report page: complete in one file, safe with any text, and a curve that says what the
numbers say.
"""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from konomi.evaluation.report import Grid, Report, Row, loss_curve, smoothed, write_report


def test_smoothing_is_a_bias_corrected_mean():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    for count, value in enumerate(smoothed(values, decay=0.5), 1):
        weights = [0.5 ** (count - i) for i in range(1, count + 1)]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        assert value == pytest.approx(expected)
    assert smoothed([2.0] * 9) == pytest.approx([2.0] * 9)


@pytest.mark.parametrize("count", [2, 600, 601, 5000])
def test_the_curve_falls_when_the_loss_falls_and_stays_small(count):
    svg = loss_curve([1.0 - i / count for i in range(count)])
    root = ElementTree.fromstring(svg)
    raw, line = (polyline.get("points").split() for polyline in root.iter("polyline"))
    assert 2 <= len(raw) == len(line) <= 600
    heights = [float(point.split(",")[1]) for point in line]
    assert heights == sorted(heights)


def test_a_run_too_short_for_a_curve_says_so():
    assert "Too few" in loss_curve([0.5])


def test_the_page_needs_nothing_else_and_escapes_words(tmp_path):
    picture = Image.new("RGB", (8, 8), "red")
    row = Row("<script>alert(1)</script>", "犬 & ねこ", ((picture,), (picture, picture)))
    report = Report(
        title="a <b> title",
        summary="s",
        samples=(picture,),
        grids=(Grid("g", ("x", "y"), (row,)),),
        losses=(0.1, 0.2, 0.3),
        facts=(("k", "v"),),
        next_steps=(("do", "konomi train 'x' > y"),),
    )
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert "<script>" not in page
    assert "犬 &amp; ねこ" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
