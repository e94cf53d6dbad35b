"""Strangers' prompts, prompt files, infotexts, masks and pictures to start from."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bounds import CHARACTERS, bounded, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from konomi.data.images import read_mask
from konomi.errors import RecipeError
from konomi.generation.adapter_request import adapters_of_prompt
from konomi.generation.drawing import with_size
from konomi.generation.infotext import parse_infotext
from konomi.generation.prompt_file import read_prompt_file
from konomi.generation.request import Request
from konomi.generation.unused import unused_in_request
from konomi.models.prompt_switching import prompt_per_step
from konomi.models.prompt_syntax import extract_tags, find_words, parse_emphasis, parse_mixture
from konomi.models.tokenizer import Tokenizer, clip_vocabulary

TOKENIZER = Tokenizer(clip_vocabulary())
pieces = st.sampled_from(
    ["(", ")", "[", "]", "{", "}", "|", ":", "\\", "<lora:x:1>", "<lora:", "<hypernet:x:1e9>",
    "<lyco:a:lbw=1,0>",
     ":0.5]", ":1.2)", ":1e999)", ":nan)", ":-9)", "BREAK", " AND ", "__x__", "embedding:a",
     "\ud83e", "\0", "犬", "a",
     " ", "\n", "--w ", "--s 5", "--l inf", "--d -1", "Steps: 20, Sampler: Euler, Seed: x, ",
     "Negative prompt: ",
     "9" * 400]
)  # fmt: skip
prompts = st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(CHARACTERS, max_size=40))


@fuzzed
@given(prompts, st.integers(1, 60))
def test_any_prompt_is_read(prompt, num_steps):
    with bounded():
        plain, _ = extract_tags(prompt)
        for step in set(prompt_per_step(plain, num_steps)):
            for part, _ in parse_mixture(step):
                for section in parse_emphasis(part):
                    assert all(abs(span.weight) < 1e5 for span in section)
                    for span in section:
                        TOKENIZER.ids(
                            "".join(text for text, _ in find_words(span.text, ["a", "犬"]))
                        )
        unused_in_request(Request(prompt=prompt, negative=prompt))
    with bounded(), TemporaryDirectory() as folder:
        (Path(folder) / "x.safetensors").touch()
        adapters_of_prompt(prompt, [Path(folder)])


@fuzzed
@given(prompts)
def test_any_infotext_is_read(text):
    with bounded():
        parse_infotext(text).request().check()


@fuzzed
@given(
    st.one_of(
        prompts.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)
    )
)
def test_any_prompt_file_is_read(content):
    with TemporaryDirectory() as folder, bounded():
        (Path(folder) / "prompts.txt").write_bytes(content)
        read_prompt_file(Path(folder) / "prompts.txt", Request(prompt=""))


def png(mode):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((20, 12)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


@fuzzed
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]).map(png), st.data())
def test_a_damaged_mask_is_read_or_named(whole, data):
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "mask.png"
        path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        read_mask(str(path), (20, 12), "init.png")


class Small:
    """As much of a base as sizes are asked of."""

    size_step, resolution, guidance_rescale = 8, 64, 0.0


@fuzzed
@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(0, 200), st.integers(0, 200)
)
def test_a_picture_to_start_from_has_a_size_that_can_be_drawn(size, width, height):
    start = Image.new("1", size)
    with bounded():
        sized = with_size(Small(), Request(prompt="", init=start, width=width, height=height))  # type: ignore[arg-type]
        assert sized.width % 8 == sized.height % 8 == 0
        if not width and not height and max(size) <= 20 * min(size):
            assert sized.width * sized.height <= 1.3 * 64**2


SIDE_BY_SIDE = (
    "[|]",
    "[a|b]",
    "[a:b:0.5]",
    "(a:1.1)",
    " BREAK ",
    "<lora:x:1>",
    "a:0.5|",
    "a:" + "9" * 400 + "|",
)
NESTED = ("(a", "[a", "[a|", "[a:", "<lora:x", "a:0.5|")
NUMBERS = (
    "(a:N)",
    "(a:N",
    "[a:b:N]",
    "[a:b:N",
    "a:N|b",
    "a:Nx|b",
    "<lora:x:N>",
    "<lora:x:1:lbw=Nx>",
)


def many(prompts, *, quick):
    """One of them by default, the others with the slow tests."""
    return [one if quick in one else pytest.param(one, marks=pytest.mark.slow) for one in prompts]


def read_in_proportion(prompt):
    with bounded(), TemporaryDirectory() as folder:
        (Path(folder) / "x.safetensors").touch()
        plain, _ = extract_tags(prompt)
        parse_emphasis(plain)
        parse_mixture(plain)
        prompt_per_step(plain, 20)
        adapters_of_prompt(prompt, [Path(folder)])


@pytest.mark.parametrize("group", many(SIDE_BY_SIDE, quick="[|]"))
def test_groups_side_by_side_take_time_in_proportion(group):
    """100,000 of `[|]` took twenty seconds."""
    read_in_proportion(group * (40_000 if len(group) < 20 else 2_000))


@pytest.mark.parametrize("opening", many(NESTED, quick="(a"))
def test_deeply_nested_prompts_take_time_in_proportion(opening):
    """30,000 brackets took a minute; ten seconds are allowed."""
    for prompt in (
        opening * 30_000,
        opening * 30_000 + "b" + ("])}>"[("[({<".find(opening[0])) % 4]) * 30_000,
    ):
        read_in_proportion(prompt)


@pytest.mark.parametrize("written", many(NUMBERS, quick="(a:N)"))
def test_numbers_of_a_hundred_thousand_digits_take_time_in_proportion(written):
    for digits in ("9" * 400, "9" * 100_000, "." * 100_000, "1." * 50_000):
        read_in_proportion(written.replace("N", digits))


def test_a_prompt_longer_than_any_base_reads_is_refused_in_one_line():
    for request in (Request(prompt="[|]" * 100_000), Request(prompt="", negative="(" * 100_000)):
        with pytest.raises(RecipeError, match="characters; at most 20,000"):
            request.check()
