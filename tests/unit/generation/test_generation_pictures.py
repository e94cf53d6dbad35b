"""What `generate` promises: same request, same picture; clear refusals; modules left as they
were.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.errors import ModelError, RecipeError
from konomi.generation.generate import count_on, generate
from konomi.generation.picture_input import init_to_pixels, mask_to_pixels
from konomi.generation.request import Request

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PLAIN = Request(prompt="a dog", negative="bad", seed=5, steps=3, sampler="euler_a", guidance=3.0)


def pixels(pictures):
    return [np.asarray(picture.image) for picture in pictures]


def gradient(size=(32, 32)):
    return Image.linear_gradient("L").resize(size).convert("RGB")


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m", "pndm"])
@pytest.mark.kernels
def test_a_picture_does_not_depend_on_its_batch(small, sampler):
    requests = [
        *count_on(replace(PLAIN, sampler=sampler), 3),
        replace(PLAIN, sampler=sampler, guidance=5.0),
    ]
    alone = pixels(generate(small, requests, batch=1))
    together = pixels(generate(small, requests, batch=4))
    assert [p.request.seed for p in generate(small, requests, batch=4)] == [5, 6, 7, 5]
    # The same to rounding: with several threads a batched product may be summed in another order.
    for one, other in zip(alone, together):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)
    assert not np.array_equal(alone[0], alone[1])
    assert not np.array_equal(alone[0], alone[3])
    (third,) = pixels(generate(small, [replace(PLAIN, sampler=sampler, seed=7)]))
    np.testing.assert_array_equal(third, alone[2])


@pytest.mark.kernels
def test_long_and_short_prompts_of_one_call_do_not_touch_each_other(small):
    requests = [
        PLAIN,
        replace(PLAIN, prompt="cat " * 40),
        replace(PLAIN, width=48),
        replace(PLAIN, seed=9),
    ]
    steps = []
    mixed = list(
        generate(small, requests, batch=4, on_step=lambda done, total: steps.append((done, total)))
    )
    assert [picture.image.size for picture in mixed] == [(32, 32), (32, 32), (48, 32), (32, 32)]
    assert steps == [(1, 3), (2, 3), (3, 3)] * 4
    for request, picture in zip(requests, mixed):
        np.testing.assert_array_equal(
            np.asarray(picture.image), *pixels(generate(small, [request]))
        )


@pytest.mark.kernels
def test_prompts_alike_but_for_syntax(small):
    (plain,) = pixels(generate(small, [PLAIN]))
    for prompt in ("a dog <lora:x:0.8>", "a (dog:1.0)", "[a dog:cat:1.0]", "a dog:0.5|a dog:0.5"):
        (same,) = pixels(generate(small, [replace(PLAIN, prompt=prompt)]))
        np.testing.assert_allclose(same.astype(int), plain.astype(int), atol=1)
    (emphasised,) = pixels(generate(small, [replace(PLAIN, prompt="a (dog:1.9)")]))
    assert not np.array_equal(emphasised, plain)


def test_sdxl_and_inpainting_bases_draw(small_sdxl, small_inpainting):
    (wide,) = generate(small_sdxl, [replace(PLAIN, width=40)])
    assert wide.image.size == (40, 32)
    (plain,) = generate(small_inpainting, [PLAIN])
    assert plain.image.size == (32, 32)


@pytest.mark.kernels
def test_inpainting_keeps_every_pixel_outside_the_mask(small, small_inpainting):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    request = replace(PLAIN, init=gradient(), mask=mask, strength=0.7)
    for base in (small, small_inpainting):
        (drawn,) = pixels(generate(base, [request]))
        np.testing.assert_array_equal(drawn[:, 16:], np.asarray(gradient())[:, 16:])
        assert not np.array_equal(drawn[:, :16], np.asarray(gradient())[:, :16])


def test_img2img_takes_the_size_of_the_picture(small):
    (picture,) = generate(small, [replace(PLAIN, init=gradient((41, 23)), strength=0.6)])
    assert picture.image.size == (40, 22)
    assert (picture.request.width, picture.request.height) == (40, 22)
    assert "Denoising strength: 0.6" in picture.infotext


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 33}, r"width is 33; it must be a multiple of 2. The nearest is 32"),
        ({"height": -8}, r"height is -8"),
        ({"steps": 0}, r"steps is 0"),
        ({"guidance": float("nan")}, r"guidance is NaN"),
        ({"seed": -1}, r"seed is -1"),
        ({"sampler": "dpm_fast"}, r"sampler is .dpm_fast.; it takes one of ddim, "),
        ({"strength": 0.0}, r"strength is 0"),
        ({"strength": 0.1}, r"strength is 0.1; of 3 steps that leaves none"),
        ({"mask": Image.new("L", (8, 8))}, r"mask is given without init"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_drawn(small, change, message):
    drawn = []
    with pytest.raises(RecipeError, match=message):
        for picture in generate(small, [PLAIN, replace(PLAIN, **change)]):
            drawn.append(picture)
    assert not drawn


@pytest.mark.parametrize("part", ["denoiser", "VAE"])
def test_a_picture_of_nan_is_an_error_with_advice(small, monkeypatch, part):
    module = small.vae.decoder.conv_out if part == "VAE" else small.denoiser.conv_out
    monkeypatch.setitem(
        module._parameters, "bias", torch.nn.Parameter(torch.full_like(module.bias, float("nan")))
    )
    with pytest.raises(
        ModelError, match=f"seed 5 .* the {part} overflowed in float32. Lower the guidance"
    ):
        list(generate(small, [PLAIN]))


def test_modes_and_gradients_are_as_before_between_pictures(small):
    small.denoiser.train()
    small.denoiser.mid_block.eval()
    before = [module.training for module in small.denoiser.modules()]
    try:
        for _ in generate(small, count_on(PLAIN, 2)):
            assert [module.training for module in small.denoiser.modules()] == before
            assert torch.is_grad_enabled()
    finally:
        small.denoiser.eval()


def test_dropout_is_off_while_drawing(small, monkeypatch):
    (calm,) = pixels(generate(small, [PLAIN]))
    small.denoiser.train()
    dropouts = [m for m in small.denoiser.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    for dropout in dropouts:
        monkeypatch.setattr(dropout, "p", 0.5)
    (again,) = pixels(generate(small, [PLAIN]))
    small.denoiser.eval()
    np.testing.assert_array_equal(calm, again)


def test_transparent_and_grey_pictures_become_tensors():
    clear = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    assert torch.equal(init_to_pixels(clear, 4, 2), torch.ones(1, 3, 2, 4))
    black = init_to_pixels(Image.new("L", (4, 2), 0), 8, 8)
    assert torch.equal(black, -torch.ones(1, 3, 8, 8))
    holes = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    holes.putpixel((1, 0), (255, 255, 255, 0))
    assert mask_to_pixels(holes, 2, 1).tolist() == [[[[1.0, 0.0]]]]
    assert mask_to_pixels(Image.new("1", (1, 1), 1), 1, 1).item() == 1
