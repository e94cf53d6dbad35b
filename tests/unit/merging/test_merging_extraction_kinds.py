"""`extract --kind` and its picture: against numpy's singular values."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.delta import delta
from konomi.adapters.kinds.kronecker import Kronecker
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.merging.kronecker import nearest_kronecker
from konomi.models.load import load_base
from konomi.models.save import save_single_file
from konomi.tasks import extract


@pytest.mark.parametrize("shape", [(12, 20), (8, 18, 3, 3)])
def test_the_nearest_kronecker_product_is_the_first_singular_value(shape):
    change = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    update, error, values = nearest_kronecker(change, 4, torch.float32)
    p, q = update.w1.shape
    assert (p, q) == ((3, 4) if len(shape) == 2 else (2, 3))
    blocks = change.double().numpy().reshape(p, shape[0] // p, q, shape[1] // q, -1)
    flat = np.stack([blocks[i, :, j].ravel() for i in range(p) for j in range(q)])
    expected = np.linalg.svd(flat, compute_uv=False)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9)
    assert error == pytest.approx(
        np.sqrt((expected[1:] ** 2).sum() / (expected**2).sum()), rel=1e-5
    )
    missed = float((delta(update, change) - change).norm() / change.norm())
    assert missed == pytest.approx(error, rel=1e-5)


def test_an_exact_kronecker_product_is_extracted_exactly(models, tmp_path):
    base = load_base(models("sd1"))
    key = next(iter(base.select_layers("cross_attention")))
    weight = base.module(key).weight
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(4, 4, generator=generator)
    w2 = torch.randn(weight.shape[0] // 4, weight.shape[1] // 4, generator=generator)
    with attach(base, [(Adapter({key: Kronecker(w1=w1, w2=w2)}), Strengths(0.1))]):
        save_single_file(base, tmp_path / "tuned.safetensors", dtype=torch.float32)
    picture = tmp_path / "values.png"
    done = extract(
        tmp_path / "tuned.safetensors",
        models("sd1"),
        tmp_path / "x.safetensors",
        kind="lokr",
        factor=4,
        picture=picture,
    )
    (update,) = read_adapter(done.path).layers.values()
    assert [layer.key for layer in done.layers] == [key] and done.error < 1e-5
    torch.testing.assert_close(
        delta(update, weight), 0.1 * torch.kron(w1, w2), rtol=1e-4, atol=1e-5
    )
    with Image.open(picture) as image:
        assert image.size == (900, 360) and len(image.convert("L").getcolors(1 << 16)) > 10
    assert done.picture == picture
    assert any(name.endswith("lokr_w1") for name in load_file(done.path))


def test_kinds_choose_layers_and_sizes(models, tmp_path):
    pair = models("sd1", 1), models("sd1", 0)
    lora = extract(*pair, tmp_path / "lora.safetensors", rank=1, kind="lora")
    layers = read_adapter(lora.path).layers
    # The projections around attention are linear layers, or convolutions of 1x1.
    assert {tuple(update.down.shape[2:]) for update in layers.values()} <= {(), (1, 1)}
    assert any(key.startswith("text_encoder.") for key in layers)
    for wrong, said in (
        ({"kind": "oft", "rank": 2}, "--kind is 'oft'; choose lora, locon, lokr"),
        ({"kind": "lokr", "rank": 2}, "--kind lokr has no ranks"),
        ({"kind": "lokr", "factor": 1}, "--factor is 1"),
        ({"factor": 4, "rank": 2}, "only --kind lokr has one"),
        ({"rank": 2, "picture": tmp_path / "x.gif"}, r"a picture is a \.png or \.svg"),
        ({"rank": 2, "picture": lora.path.with_suffix(".png")}, "exists already"),
    ):
        lora.path.with_suffix(".png").touch()
        with pytest.raises(RecipeError, match=said):
            extract(*pair, tmp_path / "o.safetensors", **wrong)
    assert not (tmp_path / "o.safetensors").exists()
