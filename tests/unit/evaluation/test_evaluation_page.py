"""The page: complete in one file, safe with any text, in two languages, and with curves that say
what the numbers say.
"""

import base64
import dataclasses
import hashlib
import json
import re
import string
import types
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import konomi
from konomi.config.write import write_recipe
from konomi.errors import KonomiError, RunError, printable
from konomi.evaluation.page import NAME, step_of_page, write_page
from konomi.evaluation.page.comparison_part import MOST_COLUMNS, comparison_page
from konomi.evaluation.page.content import Page
from konomi.evaluation.page.pictures import embedded
from konomi.evaluation.page.plots import Curve, Point, curves, smoothed, trade_off
from konomi.evaluation.page.rendering import TEMPLATES, html_of
from konomi.evaluation.page.run_files import read_diary
from konomi.evaluation.page.texts import TEXTS, Words
from konomi.evaluation.page.training_part import training_page
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.store import write_summary
from konomi.evaluation.summary import (
    Candidate,
    Copy,
    Estimate,
    ScorerNote,
    Suggestion,
    Summary,
)
from konomi.generation.infotext import png_bytes, write_infotext
from konomi.generation.request import Origin, Picture, Request

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "\"><script>alert(1)</script>'{{ 7 * 7 }}&amp;\u202egnp.\x1b[2J\x00\ud800"


class Reader(HTMLParser):
    """Tags with their attributes, and the text that a person sees."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.hidden = [], "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data):
        self.text += "" if self.hidden else data

    def all(self, wanted):
        return [attrs for tag, attrs in self.tags if tag == wanted]


def drawn(prompt, seed, colour):
    request = Request(prompt=prompt, seed=seed, width=16, height=16)
    image = Image.new("RGB", (16, 16), colour)
    return png_bytes(Picture(image, request, write_infotext(request, Origin())))


def make_run(folder, prompts=("a sks dog", "a dog"), name="sks"):
    """A run of six steps with previews at the start, on the way and at the end."""
    (folder / "previews").mkdir(parents=True)
    (folder / "photos").mkdir()
    Image.new("RGB", (32, 32), "green").save(folder / "photos" / "one.png")
    recipe = konomi.recipe_from_flags(
        "lora",
        images=[folder / "photos"],
        base="tiny",
        trigger="sks",
        overrides=["method.rank=3", f"run.name={json.dumps(name)}"],
    )
    (folder / "recipe.toml").write_text(write_recipe(recipe), encoding="utf-8")
    record = {"locator": str(folder / "photos" / "one.png"), "name": "one.png", "role": "train"}
    (folder / "manifest.jsonl").write_text(json.dumps(record) + "\n")
    lines = [
        {"step": s, "loss": 1 / s, "learning_rate": 0.1 * s, "seconds": 2.0, "memory": 2048.0}
        for s in range(1, 7)
    ]
    lines += [
        {"kind": "validation", "step": s, "loss": v, "base_loss": 0.5}
        for s, v in ((0, 0.5), (3, 0.4), (6, 0.45))
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (0, 3, 6):
        for number, prompt in enumerate(prompts):
            path = folder / "previews" / f"step-{step:06d}-{number:02d}.png"
            path.write_bytes(drawn(prompt, 7 + number, (40 * step, 0, 0)))
    (folder / f"{name}.safetensors").write_bytes(b"not a file of tensors")
    return folder


def estimate(mean, base=None):
    difference = None if base is None else (mean - base, mean - base - 0.02, mean - base + 0.03)
    return Estimate(mean, mean - 0.02, mean + 0.03, base, difference, 4)


def make_summary(folder, count=3, text="a sks dog", label="step {}"):
    """A base, `count` candidates of two methods, and one that failed."""
    (folder / "pictures").mkdir(parents=True)
    prompts = (EvaluationPrompt(text, "subject", text), EvaluationPrompt("a dog", "class", "a dog"))
    base = {"likeness": estimate(0.3), "prompt_following": estimate(0.2)}
    rows = [Candidate("base", "base", "base", "", "", 0, 0.0, 0, base, {})]
    for number in range(1, count + 1):
        scores = {
            "likeness": estimate(0.4 + 0.01 * number, 0.3),
            "prompt_following": estimate(0.3 - 0.01 * number, 0.2),
            "drift": estimate(0.02 * number, 0.0),
        }
        method = "lora" if number % 2 else "pivotal"
        rows.append(
            Candidate(
                f"c{number}",
                label.format(number),
                method,
                f"c{number}.safetensors",
                "",
                100 * number,
                1.0,
                2**20,
                scores,
                {},
            )
        )
    for at, row in enumerate(rows):
        pictures = {}
        for place in ("0-0", "0-1", "1-0", "1-1"):
            path = f"pictures/{row.id}-{place}.png"
            Image.new("RGB", (16, 16), (9 * at, 90, 0)).save(folder / path)
            pictures[place] = path
        rows[at] = replace(row, pictures=pictures)
    copy = Copy("pictures/c1-0-0.png", "pictures/base-0-0.png", 0.97, 0.61)
    rows[1] = replace(rows[1], copies=(copy,))
    rows.append(
        Candidate("f", label.format("f"), "full", "", "", 0, 1.0, 0, {}, {}, failure="out of room.")
    )
    notes = (
        ScorerNote("likeness", "likeness", "a paper", "cosine", True),
        ScorerNote("prompt_following", "prompt following", "a paper", "cosine", True),
        ScorerNote("drift", "drift", "", "distance", False),
    )
    suggestion = Suggestion(
        f"c{count}", f"because {text}", "良いから。", "konomi generate x", {"c1": "copies"}
    )
    return Summary(
        base="tiny",
        prompts=prompts,
        seeds=(5, 6),
        references=3,
        references_held_out=False,
        encoders={"image": "tiny"},
        scorers=notes,
        candidates=tuple(rows),
        suggestion=suggestion,
        notes=("no",),
    )


def page_of(folder, summary, language="en"):
    return html_of(comparison_page(folder, summary, Words(language)))


def check_self_contained(page):
    reader = Reader(page)
    for tag, attrs in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        if tag == "img":
            assert attrs.get("src", "data:").startswith("data:")
        if attrs.get("href"):
            assert attrs["href"].startswith("./")
        assert not [name for name in attrs if name.startswith("on")]
    assert len(reader.all("script")) == 1 and "src" not in reader.all("script")[0]
    rules = next(a["content"] for a in reader.all("meta") if "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{wanted}'" in rules and "default-src 'none'" in rules
    return reader


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_of_a_run_has_what_its_folder_has(tmp_path, language):
    folder = make_run(tmp_path / "run")
    path = write_page(folder, language=language)
    page = path.read_text(encoding="utf-8")
    reader = check_self_contained(page)
    words = Words(language)
    assert path == folder / NAME and step_of_page(folder) == 6
    for key in ("before_after", "learned_from", "grids_run", "curves", "settings_changed"):
        assert words(key) in reader.text
    for key in ("scores", "copies", "trade_off", "tree", "hurting"):
        assert words(key) not in reader.text
    # Two prompts at three steps, two pairs, one training picture, and the two of the viewer.
    assert len(reader.all("img")) == 6 + 4 + 1 + 2
    assert "method.rank3" in reader.text and words.time(12) in reader.text
    assert f"konomi generate 'a sks dog' --base tiny --add {folder}/sks.safetensors" in reader.text
    assert words("validation_note", step=3) in reader.text


def test_a_part_that_is_not_there_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "learning_rate": 0.1}\nnot a line\n'
    )
    page = write_page(tmp_path, language="en").read_text(encoding="utf-8")
    assert "<svg" not in page and TEXTS["before_after"][0] not in page
    assert step_of_page(tmp_path) == 1


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"neither a run folder nor"):
        write_page(tmp_path)
    assert list(tmp_path.iterdir()) == [] and step_of_page(tmp_path) is None


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_of_a_comparison_has_what_its_summary_has(tmp_path, language):
    summary = make_summary(tmp_path)
    write_summary(summary, tmp_path)
    reader = check_self_contained(write_page(tmp_path, language=language).read_text("utf-8"))
    words = Words(language)
    reason = summary.suggestion.reason_ja if language == "ja" else summary.suggestion.reason
    assert reason in reader.text and "konomi generate x" in reader.text
    for key in ("before_after", "grids", "scores", "copies", "references_trained"):
        wanted = words(key) if key != "references_trained" else words.counted("pictures", 3)
        assert wanted in reader.text
    assert "0.43" in reader.text and words("interval", low="0.41", high="0.46") in reader.text
    assert "out of room." in reader.text
    notes = [attrs.get("title") for attrs in reader.all("td")]
    assert words("against_base", sign="+", mean="0.13", low="0.11", high="0.16") in notes
    # 4 candidates at 4 places, a pair of each of the two prompts, one copy, the viewer.
    assert len(reader.all("img")) == 16 + 4 + 2 + 2


def test_of_many_candidates_some_stand_side_by_side_and_the_others_follow(tmp_path):
    summary = make_summary(tmp_path, count=13)
    summary = replace(summary, suggestion=replace(summary.suggestion, id="c12"))
    page = comparison_page(tmp_path, summary, Words("en"))
    side_by_side = [column.label for column in page.grids[0].columns]
    assert side_by_side[0] == "base" and len(side_by_side) == MOST_COLUMNS + 1
    # The suggested one, and the most like of each method.
    assert {"step 12", "step 13"} <= set(side_by_side)
    folded = [c.label for grid in page.folded_grids[::2] for c in grid.columns if c.label != "base"]
    assert sorted([*side_by_side[1:], *folded]) == sorted(f"step {n}" for n in range(1, 14))


def test_a_candidate_that_is_none_and_pictures_that_are_gone_stop_nothing(tmp_path):
    summary = make_summary(tmp_path)
    for path in (tmp_path / "pictures").glob("c2-*"):
        path.write_bytes(b"no picture")
    nobody = replace(summary.suggestion, id="", reason="all of them copy.")
    page = comparison_page(tmp_path, replace(summary, suggestion=nobody), Words("en"))
    assert page.advice.heading == TEXTS["no_suggestion"][0]
    assert [row.pictures[2] for row in page.grids[0].rows] == [None, None]
    assert comparison_page(tmp_path, replace(summary, suggestion=None), Words("en")).advice is None


OURS = {"data": "data:,", "svg": "<svg></svg>", "language": "en", "key": (), "file": ""}
"""Fields whose texts come from konomi alone."""


def filled(kind, text):
    """An object of the page with `text` wherever a text of a stranger may stand."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: OURS.get(name, filled(hints[name], text)) for name in hints})
    if get_origin(kind) in (tuple, types.UnionType):
        inner = filled(get_args(kind)[0], text)
        return (inner,) if get_origin(kind) is tuple else inner
    return {str: text, bool: True, int: 1}[kind]


def check_harmless(page, hostile):
    """The text is shown, and nothing of it is HTML."""
    reader = check_self_contained(page)
    assert printable(hostile) in reader.text
    assert "alert(1)" not in str(
        [attrs for tag, attrs in reader.tags if tag in ("script", "style")]
    )


texts = st.text(min_size=1, max_size=40) | st.sampled_from(
    ["</style><img src=x onerror=alert(1)>", "${1}{0}{text}%s", "<!-- ", "]]>", "' onload='"]
)


@given(text=texts)
@example(text=HOSTILE)
def test_no_text_of_a_stranger_becomes_html(text):
    plain, page = (html_of(filled(Page, some)) for some in ("x", text))
    # A command has a `span` for each of its words.
    ours, theirs = ([t for t, _ in Reader(html).tags if t != "span"] for html in (plain, page))
    assert ours == theirs
    check_harmless(page, text.replace("\r", "\\r"))


def test_a_hostile_comparison_is_shown_harmlessly(tmp_path):
    summary = make_summary(tmp_path, text=HOSTILE, label="<b>{}</b>")
    summary = replace(summary, base=HOSTILE, notes=(HOSTILE,))
    page = page_of(tmp_path, summary)
    check_harmless(page, HOSTILE)
    assert "49" not in Reader(page).text.replace("0.49", "")


def test_a_hostile_run_is_shown_harmlessly(tmp_path):
    hostile = HOSTILE.replace("\x00", "").replace("\ud800", "")
    folder = make_run(tmp_path / "run", prompts=(hostile,), name="sks")
    recipe = (folder / "recipe.toml").read_text(encoding="utf-8")
    changed = recipe.replace('trigger = "sks"', f"trigger = {json.dumps(hostile)}")
    (folder / "recipe.toml").write_text(changed, encoding="utf-8")
    check_harmless(write_page(folder).read_text(encoding="utf-8"), hostile)


def test_only_what_lies_beside_the_page_is_linked(tmp_path):
    (tmp_path / "page").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "page" / "a javascript:x #1?.png")
    (tmp_path / "page" / "link.png").symlink_to(tmp_path / "other.png")
    names = ["a javascript:x #1?.png", "link.png", "../other.png", str(tmp_path / "other.png")]
    shown = embedded(
        [*names, "absent.png", "\0", "/dev/zero"], beside=tmp_path / "page", budget=10**6
    )
    assert [shown[name].file for name in names] == [
        "./a%20javascript%3Ax%20%231%3F.png",
        "",
        "",
        "",
    ]
    assert shown.keys() == set(names)


def test_pictures_stay_within_their_budget_also_where_they_are_noise(tmp_path):
    noise = np.random.default_rng(0)
    for number in range(6):
        pixels = noise.integers(0, 256, (300, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    names = [f"{number}.png" for number in range(6)]
    shown = embedded(names, beside=tmp_path, budget=60_000)
    assert shown.keys() == set(names)
    assert sum(len(one.data) for one in shown.values()) <= 60_000
    assert all(abs(one.width / one.height - 2 / 3) < 0.05 for one in shown.values())
    whole = embedded(names[:1], beside=tmp_path, budget=10**7)["0.png"]
    assert (whole.width, whole.height) == (200, 300)


def ticks(root, axis):
    """Position -> value, as a person reads the axis: `x` or `y`."""
    found = []
    for text in root.iter(f"{SVG}text"):
        anchor = "middle" if axis == "x" else "end"
        if f"text-anchor: {anchor}" in text.get("style"):
            found.append((float(text.get(axis)), float(text.text.replace("−", "-"))))
    (low, first), (high, last) = found[0], found[-1]
    return lambda at: first + (at - low) * (last - first) / (high - low)


def points(root, colour):
    for path in root.iter(f"{SVG}path"):
        if f"stroke: var(--{colour})" in (path.get("style") or "") and "clip-path" in path.attrib:
            numbers = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d"))
            yield [(float(x), float(y)) for x, y in numbers]


def test_a_curve_says_what_the_numbers_say():
    steps, values = list(range(1, 101)), [1 / (1 + 0.1 * step) for step in range(1, 101)]
    root = ElementTree.fromstring(curves([Curve(steps, values)], bottom=0))
    line = max(points(root, "mark"), key=len)
    across = ticks(root, "x")
    # matplotlib leaves out points on a straight line between others, so values are looked up.
    assert across(line[0][0]) == pytest.approx(1, abs=0.2)
    assert across(line[-1][0]) == pytest.approx(100, abs=0.2)
    gridlines = sorted({path[0][1] for path in points(root, "line") if path[0][1] == path[-1][1]})
    labels = sorted(
        (float(text.text) for text in root.iter(f"{SVG}text") if "end" in text.get("style")),
        reverse=True,
    )
    slope = (labels[0] - labels[-1]) / (gridlines[0] - gridlines[-1])
    for x, y in line:
        value = labels[0] + (y - gridlines[0]) * slope
        assert value == pytest.approx(np.interp(across(x), steps, values), abs=0.01)


@pytest.mark.parametrize("count", [2, 499, 5000])
def test_a_long_run_stays_a_small_drawing_without_words(count):
    svg = curves([Curve(range(count), [1.0 - i / count for i in range(count)], dots=count == 2)])
    assert len(svg) < 60_000
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(f"{SVG}style")) and "font-family" not in svg
    assert all(re.fullmatch(r"[−\d.]+", text.text) for text in root.iter(f"{SVG}text"))
    # Colours are the page's, so that they follow light and dark.
    assert not re.search(r": #[0-9a-f]{6}", svg) and "var(--mark)" in svg


def test_the_trade_off_shows_each_candidate_by_its_number():
    base = Point((0.2, 0.1, 0.3), (0.3, 0.25, 0.35), "", "soft")
    kept = Point((0.3, 0.2, 0.4), (0.6, 0.5, 0.7), "12", "drift-4", kept=True)
    svg = trade_off([base, kept])
    root = ElementTree.fromstring(svg)
    labels = [text for text in root.iter(f"{SVG}text") if text.text == "12"]
    assert len(labels) == 1 and "var(--drift-4)" in svg and "var(--mark)" in svg
    assert trade_off([base, kept]) == svg


def test_smoothing_is_a_bias_corrected_mean():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    for count, value in enumerate(smoothed(values, decay=0.5), 1):
        weights = [0.5 ** (count - i) for i in range(1, count + 1)]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        assert value == pytest.approx(expected)
    assert smoothed([2.0] * 9) == pytest.approx([2.0] * 9)


def test_every_text_is_there_twice_with_the_same_values():
    for key, (english, japanese) in TEXTS.items():
        values = [
            {name for _, name, _, _ in string.Formatter().parse(text) if name}
            for text in (english, japanese)
        ]
        assert values[0] == values[1], key
        assert english.isascii(), key
        assert key == "interval" or re.search("[\u3040-\u30ff\u4e00-\u9fff]", japanese), key


def test_templates_use_only_words_of_the_table_and_have_none_of_their_own():
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\bt\.([a-z_]+)", text)) <= TEXTS.keys()
        bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<script>.*?</script>|<[^>]*>", " ", text, flags=re.S)
        assert not re.findall(r"[A-Za-z]{3,}", bare.replace("konomi", "")), path.name


def test_the_diary_leaves_out_what_is_no_entry(tmp_path):
    lines = [
        '{"step": 1, "loss": 1.0, "learning_rate": 0.5, "seconds": 2}',
        '{"step": 2, "loss": "high", "learning_rate": 0.5}',
        '{"step": 3, "loss": 0.5, "learning_rate": 0.25, "seconds": "long", "memory": 7}',
        '{"step": 3, "kind": "validation", "loss": 0.5, "base_loss": null}',
        '{"step": 4, "kind": "images", "losses": [1, 2]}',
        "[]",
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    diary = read_diary(tmp_path)
    assert (diary.steps, diary.losses, diary.rates) == ((1, 3), (1.0, 0.5), (0.5, 0.25))
    assert (diary.seconds, diary.memory, diary.validated) == (2.0, 7.0, ())


def test_a_broken_recipe_costs_only_its_part(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "recipe.toml").write_text("base = 7\n[method", encoding="utf-8")
    page = training_page(folder, Words("en"))
    assert page.curves and page.pairs and not page.settings and not page.commands
    assert page.title == "run"


def test_a_damaged_summary_is_one_clear_line(tmp_path):
    content = asdict(make_summary(tmp_path))
    content["candidates"][0]["scores"] = 7
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(KonomiError, match=r"summary\.json: is damaged") as refusal:
        write_page(tmp_path)
    assert "\n" not in str(refusal.value) and not (tmp_path / NAME).exists()
