"""OFT and BOFT against lycoris-lora and PEFT, and against float64 formulas."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.delta import delta, delta_at
from konomi.adapters.kinds import Butterfly, LayerSettings, Orthogonal
from konomi.adapters.kinds.rotation import RotationSettings
from konomi.errors import ModelError, RecipeError
from konomi.formats.layers import LayerError, layer_from_parts

KINDS = {"oft": Orthogonal, "boft": Butterfly}
both = pytest.mark.parametrize("name", list(KINDS))


def draw(*shape: int, seed: int = 0, size: float = 0.2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def module(kernel: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = nn.Conv2d(6, 16, kernel, padding=kernel // 2) if kernel else nn.Linear(6, 16)
    return layer.requires_grad_(False)


def trained_layer(name: str, layer: nn.Module, own: RotationSettings) -> nn.Module:
    settings = LayerSettings(4, 4.0, own=own)
    return KINDS[name].about.training.spec(settings).layer("denoiser.x", layer, seed=0)


def lycoris_module(name: str, layer: nn.Module, constraint: float, rescaled: bool) -> nn.Module:
    pytest.importorskip("lycoris")
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule

    kind = {"oft": DiagOFTModule, "boft": ButterflyOFTModule}[name]
    judge = kind("x", layer, 1.0, 4, constraint=constraint, rescaled=rescaled)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.add_(draw(*parameter.shape, seed=2))
    return judge


@both
@pytest.mark.parametrize("kernel", [0, 1, 3])
@pytest.mark.parametrize("constraint", [0.0, 0.02])
@pytest.mark.parametrize("rescaled", [False, True])
def test_lycoris_computes_the_same(name, kernel, constraint, rescaled):
    layer = module(kernel)
    judge = lycoris_module(name, layer, constraint, rescaled)
    parts = {part: value.detach() for part, value in judge.state_dict().items()}
    update = layer_from_parts(parts)
    assert type(update) is KINDS[name]
    wanted = judge.get_diff_weight()[0].detach()
    torch.testing.assert_close(delta(update, layer.weight), wanted, rtol=1e-5, atol=1e-5)
    assert {n: tuple(t.shape) for n, t in update.to_parts(norm=False).items()} == {
        n: tuple(t.shape) for n, t in parts.items()
    }
    # At a strength: LyCORIS keeps `rescale` whole at every strength, konomi does not.
    if not rescaled:
        half = judge.get_merged_weight(0.6)[0].detach() - layer.weight
        torch.testing.assert_close(delta_at(update, layer.weight, 0.6), half, rtol=1e-5, atol=1e-5)
    # Trained: the same answer and the same gradients.
    own = RotationSettings(block_size=4, constraint=constraint, rescale=rescaled)
    trained = trained_layer(name, layer, own)
    trained.load(update)
    x = draw(2, 6, 5, 5, size=1.0) if kernel else draw(3, 7, 6, size=1.0)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    judge.train()
    answers = [judge(inputs[0]), trained(inputs[1])]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    for answer in answers:
        answer.square().mean().backward()
    pairs = [(inputs[1].grad, inputs[0].grad), (trained.blocks.grad, judge.oft_blocks.grad)]
    pairs += [(trained.rescale.grad, judge.rescale.grad)] if rescaled else []
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def peft_layer(name: str, layer: nn.Module, **settings: object) -> tuple[nn.Module, nn.Module]:
    peft = pytest.importorskip("peft")
    config = {"oft": peft.OFTConfig, "boft": peft.BOFTConfig}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            nn.ModuleDict({"x": layer}),
            config(target_modules=["x"], init_weights=False, **settings),
        )
    return model, model.base_model.model["x"]


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("terms", [0, 2, 3, 5, 7])
@pytest.mark.parametrize("share", [False, True])
def test_peft_oft(kernel, terms, share):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        _, judge = peft_layer(
            "oft",
            module(kernel),
            r=0,
            oft_block_size=3,
            block_share=share,
            use_cayley_neumann=terms > 0,
            num_cayley_neumann_terms=terms or 5,
        )
    weight = judge.base_layer.weight.detach().clone()
    packed = judge.oft_R["default"].weight.detach()
    read = layer_from_parts({"oft_R": packed})
    update = Orthogonal(read.blocks, side="input", terms=terms)
    torch.testing.assert_close(update.packed(), packed)
    judge.merge()
    change = judge.base_layer.weight.detach() - weight
    torch.testing.assert_close(delta(update, weight), change, rtol=1e-5, atol=1e-5)


class PythonBlocks:
    """PEFT's CUDA extension, which lays blocks out as one matrix, in Python."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


@pytest.mark.parametrize("kernel", [0, 1])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_peft_boft(kernel, stages, monkeypatch):
    pytest.importorskip("peft")
    from peft.tuners.boft import layer as module_of_peft

    monkeypatch.setattr(module_of_peft, "get_fbd_cuda", lambda: PythonBlocks)
    base = nn.Conv2d(16, 6, 1) if kernel else nn.Linear(16, 6)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        _, judge = peft_layer("boft", base, boft_block_size=4, boft_n_butterfly_factor=stages)
    weight = judge.base_layer.weight.detach().clone()
    scale = judge.boft_s["default"].detach()
    update = layer_from_parts({"boft_R": judge.boft_R["default"].detach(), "boft_s": scale})
    assert type(update) is Butterfly and update.side == "input" and update.input_width == 16
    with torch.no_grad():
        judge.merge()
    change = judge.base_layer.weight.detach() - weight
    torch.testing.assert_close(delta(update, weight), change, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("side", ["output", "input"])
def test_in_float64_lengths_stay_and_nothing_is_lost_near_the_start(name, side):
    kind, shape = KINDS[name], (4, 4, 4) if name == "oft" else (3, 4, 4, 4)
    weight = draw(16, 16, size=1.0).double()
    update = kind(draw(*shape).double(), side=side)
    changed = weight + delta(update, weight)
    axis = 0 if side == "output" else 1
    lengths = [torch.linalg.vector_norm(w, dim=axis) for w in (weight, changed)]
    torch.testing.assert_close(lengths[1], lengths[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(changed, weight, atol=1e-2)
    # A turn of 1e-9 is a change of 1e-9 also in float32, where 1 + 1e-9 is 1.
    tiny = kind(1e-9 * draw(*shape).double(), side=side)
    exact, single = delta(tiny, weight), delta(tiny, weight.float())
    assert float((single - exact).norm() / exact.norm()) < 1e-5 and float(exact.norm()) > 0


@both
def test_bfloat16_learns_what_rounding_would_swallow(name):
    layer = nn.Linear(16, 16).requires_grad_(False)
    trained = trained_layer(name, layer.to(torch.bfloat16), RotationSettings(block_size=4))
    with torch.no_grad():
        trained.blocks.add_(draw(*trained.blocks.shape, size=1e-4))
    change = delta(trained.export(), layer.weight)
    x = draw(64, 16, size=1.0).bfloat16()
    wanted = F.linear(x.float(), change)
    own = trained(x).detach()
    assert own.dtype == torch.bfloat16
    # Over many answers the small change is there; in a sum with the weight it would be lost.
    merged = F.linear(x, (layer.weight + change).bfloat16(), layer.bias)
    plain = F.linear(x, layer.weight, layer.bias)
    got, lost = (
        float(((answer - plain).float() * wanted).sum() / wanted.square().sum())
        for answer in (own, merged)
    )
    assert abs(got - 1) < abs(lost - 1)


def test_strength_zero_is_the_base_and_half_a_butterfly_is_half_of_each_stage():
    blocks = draw(3, 4, 4, 4)
    rescale = 1 + draw(16, 1, seed=4)
    update = Butterfly(blocks, rescale=rescale)
    weight = draw(16, 6, size=1.0)
    assert not delta_at(update, weight, 0.0).any()
    base = nn.ModuleDict({"x": nn.Linear(6, 16)})
    base.module = lambda key: base["x"]
    base.negative_weights, base.added_tokens = {}, {}
    before = base["x"].weight.detach().clone()
    with attach(base, [(Adapter({"denoiser.x": update}), Strengths(0.5, 0.5))]):
        torch.testing.assert_close(
            base["x"].weight.detach(), before + delta_at(update, before, 0.5)
        )
    assert torch.equal(base["x"].weight, before)
    assert not torch.allclose(delta_at(update, weight, 0.5), 0.5 * delta(update, weight), atol=1e-3)


def test_what_does_not_fit_is_named():
    with pytest.raises(RecipeError, match="no blocks of 2 to 4 channels fit the 7"):
        trained_layer("oft", nn.Linear(4, 7), RotationSettings(block_size=4))
    with pytest.raises(RecipeError, match="no blocks of 2 to 4 channels fit the 12"):
        trained_layer("boft", nn.Linear(4, 12), RotationSettings(block_size=4))
    for parts, match in (
        ({"oft_blocks": draw(2, 3, 4)}, "must be square"),
        ({"oft_blocks": draw(2, 3, 3), "rescale": draw(5, 1)}, "one factor for each of 6"),
        ({"oft_blocks": draw(3, 3, 4, 4)}, "3 stages"),
        ({"oft_R": draw(2, 4)}, "no triangle"),
        ({"oft_R": draw(2, 3), "alpha": torch.tensor(1.0)}, "PEFT's oft_R"),
        ({"rescale": draw(5, 1)}, "has no oft_blocks|none of the tensors"),
    ):
        with pytest.raises(LayerError, match=match):
            try:
                layer_from_parts(parts)
            except LayerError as error:
                raise LayerError("", error.what) from error
    with pytest.raises(ModelError, match="turn 16 channels, this weight has 12"):
        delta(Orthogonal(draw(4, 4, 4)), draw(12, 3))
    with pytest.raises(ModelError, match="turn 16 channels, this weight has 12"):
        delta(Butterfly(draw(2, 4, 4, 4)), draw(12, 3))
    with pytest.raises(ModelError, match="rescales 8 outputs"):
        delta(Orthogonal(draw(4, 4, 4), rescale=draw(8)), draw(16, 3))
