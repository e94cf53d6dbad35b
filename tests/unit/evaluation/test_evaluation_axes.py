"""What an axis of a grid says, and the cells that follow."""

from pathlib import Path

import pytest

from konomi.errors import KonomiError, RecipeError
from konomi.evaluation.axes import MOST_VALUES, Axis, cells, parse_axis
from konomi.generation.request import Request


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("weight=0.4:1.2:5", (0.4, 0.6, 0.8, 1.0, 1.2)),
        ("weight=1,0.5", (1.0, 0.5)),
        ("weight=-1:1:3", (-1.0, 0.0, 1.0)),
        ("seed=1:4", (1, 2, 3, 4)),
        ("seed=4:1", (4, 3, 2, 1)),
        ("steps=10,20:40:3", (10, 20, 30, 40)),
        ("guidance-rescale=0,0.7", (0.0, 0.7)),
        ("prompt=a dog, red; a cat", ("a dog, red", "a cat")),
        ("file=a.safetensors,base", (Path("a.safetensors"), None)),
        ('file="with, comma.safetensors",b', (Path("with, comma.safetensors"), Path("b"))),
        ("sampler=ddim, euler", ("ddim", "euler")),
        ("seed=3,3", (3,)),
    ],
)
def test_values_of_an_axis(text, values):
    assert parse_axis(text, "--x").values == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wieght=1", "--x is 'wieght=1'.*Did you mean weight"),
        ("weight", "SETTING=VALUES"),
        ("weight=", "has no value"),
        ("prompt= ; ", "has no value"),
        ("weight=a", "'a' is none of 3, 1:4"),
        ("weight=1:2:3:4", "none of 3, 1:4"),
        ("weight=inf", "none of"),
        ("seed=1.5", "none of"),
        ("seed=1:100000", "100000 values; 2 to"),
        ("weight=1:2:1", "1 values; 2 to"),
        (f"seed={','.join(map(str, range(MOST_VALUES + 1)))}", "at most 100"),
    ],
)
def test_what_is_no_axis_says_so_in_one_line(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_axis(text, "--x")
    assert "\n" not in str(caught.value)


def test_every_combination_row_by_row():
    x, y = parse_axis("seed=1:2", "--x"), parse_axis("steps=3,4", "--y")
    z = parse_axis("size=64,128x64", "--z")
    found = cells(x, y, z, Request(prompt="a dog"))
    assert [cell.place for cell in found[:3]] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    drawn = [(c.request.seed, c.request.steps, c.request.width, c.request.height) for c in found]
    assert drawn[:4] == [(1, 3, 64, 64), (2, 3, 64, 64), (1, 4, 64, 64), (2, 4, 64, 64)]
    assert drawn[4:6] == [(1, 3, 128, 64), (2, 3, 128, 64)] and len(drawn) == 8


def test_files_and_weights_go_with_their_cells():
    x, y = parse_axis("weight=0,1", "--x"), parse_axis("file=a,base", "--y")
    found = cells(x, y, None, Request(prompt="a dog"))
    assert [(cell.file, cell.weight) for cell in found] == [
        (Path("a"), 0.0), (Path("a"), 1.0), (None, 0.0), (None, 1.0)
    ]  # fmt: skip
    alone = cells(x, parse_axis("seed=1:2", "--y"), None, Request(prompt="x"), file=Path("b"))
    assert {cell.file for cell in alone} == {Path("b")}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("seed=1:2", "seed=1:3", "stands on two axes"),
        ("weight=1,2", "seed=1:3", "weight: of nothing"),
        ("steps=0,1", "seed=1:3", "steps is 0; at least 1"),
        ("sampler=ddimm,euler", "seed=1:2", "ddim"),
        ("seed=1:100", "steps=1:100", "10000 pictures; at most"),
    ],
)
def test_axes_that_cannot_be_drawn_say_so(x, y, message):
    with pytest.raises(KonomiError, match=message):
        cells(parse_axis(x, "--x"), parse_axis(y, "--y"), None, Request(prompt="x"))


def test_labels_say_setting_and_value():
    assert parse_axis("weight=0.4,1", "--x").labels == ("weight 0.4", "weight 1")
    assert parse_axis("file=runs/dog.safetensors,base", "--x").labels == ("dog", "base")
    assert Axis("prompt", ("a dog",)).labels == ("a dog",)
