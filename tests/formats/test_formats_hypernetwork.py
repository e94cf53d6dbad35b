"""Hypernetwork files: read, written, told apart, refused with the tensor's name."""

import json
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.hypernetwork import ACTIVATIONS, build_network
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import convert_adapter, inspect_file, read_adapter, write_adapter
from konomi.storage.tensor_file import read_header


def half(width: int, *multiples: float, step: int = 1, seed: int = 0) -> "OrderedDict[str, Tensor]":
    """Tensors of linear layers at positions 0, step, 2 * step, ... as a web UI's module
    names them.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    widths = [int(width * multiple) for multiple in multiples or (1, 2, 1)]
    for index, (inner, outer) in enumerate(pairwise(widths)):
        tensors[f"linear.{index * step}.weight"] = (
            torch.randn(outer, inner, generator=generator) * 0.01
        )
        tensors[f"linear.{index * step}.bias"] = torch.randn(outer, generator=generator) * 0.01
    return tensors


def pair(
    width: int, *multiples: float, step: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return half(width, *multiples, step=step, seed=width), half(
        width, *multiples, step=step, seed=width + 1
    )


A1111 = {
    "step": 1200,
    "name": "paint",
    "layer_structure": [1, 2, 1],
    "activation_func": "relu",
    "is_layer_norm": False,
    "weight_initialization": "KaimingNormal",
    "use_dropout": False,
    "sd_checkpoint": "81761151",
    "sd_checkpoint_name": "v1-5-pruned-emaonly",
    "activate_output": False,
    "last_layer_dropout": False,
    "dropout_structure": [0, 0, 0],
    "optional_info": "ten paintings",
}


def save(path: Path, table: Any) -> Path:
    torch.save(table, path)
    return path


@pytest.fixture
def a1111(tmp_path: Path) -> Path:
    """As A1111 writes it: 1, 2, 1 with an activation between."""
    widths = (768, 320, 640, 1280)
    return save(tmp_path / "a.pt", {width: pair(width, step=2) for width in widths} | A1111)


def same(one: Hypernetwork, other: Hypernetwork) -> bool:
    def plain(spec: Hypernetwork) -> tuple[object, ...]:
        return (
            spec.structure,
            spec.activation,
            spec.activate_output,
            spec.layer_norm,
            spec.dropout,
            spec.facts,
            list(spec.pairs),
        )

    tensors = zip(
        (h.tensors for p in one.pairs.values() for h in p),
        (h.tensors for p in other.pairs.values() for h in p),
    )
    return plain(one) == plain(other) and all(
        list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
        for a, b in tensors
    )


def test_a_web_uis_file_is_read(a1111: Path) -> None:
    adapter = read_adapter(a1111)
    assert (adapter.name, adapter.family) == ("paint", "sd1")
    spec = adapter.hypernetwork
    assert spec is not None
    assert (spec.structure, spec.activation, spec.activate_output) == (
        (1.0, 2.0, 1.0),
        "relu",
        False,
    )
    assert list(spec.pairs) == [320, 640, 768, 1280]
    assert torch.equal(
        spec.pairs[320][1].tensors["linear.2.weight"], pair(320, step=2)[1]["linear.2.weight"]
    )
    report = inspect_file(a1111)
    assert (report.kind, report.format, report.family) == ("hypernetwork", "webui", "sd1")
    assert report.layers == {"320": 8, "640": 8, "768": 8, "1280": 8}
    assert report.metadata["step"] == "1200" and report.metadata["optional_info"] == "ten paintings"
    assert (
        report.health.checked
        and report.health.nonfinite == ()
        and len(report.hashes["sha256"]) == 64
    )


def test_what_is_written_is_what_was_read(a1111: Path, tmp_path: Path) -> None:
    """To .pt, to safetensors and back: every bit, every entry and its type."""
    adapter = read_adapter(a1111)
    assert adapter.hypernetwork is not None
    convert_adapter(a1111, tmp_path / "b.pt")
    convert_adapter(tmp_path / "b.pt", tmp_path / "c.safetensors")
    convert_adapter(tmp_path / "c.safetensors", tmp_path / "d.pt")
    for name in ("b.pt", "c.safetensors", "d.pt"):
        again = read_adapter(tmp_path / name)
        assert again.hypernetwork is not None and same(adapter.hypernetwork, again.hypernetwork)
        assert (again.name, again.family) == ("paint", "sd1")
    table = torch.load(tmp_path / "b.pt", weights_only=True)
    assert {key: item for key, item in table.items() if isinstance(key, str)} == A1111
    assert [key for key in table if isinstance(key, int)] == [320, 640, 768, 1280]
    assert all(type(table[key]) is type(A1111[key]) for key in A1111)
    assert "320.k.linear.0.weight" in read_header(tmp_path / "c.safetensors").tensors
    assert inspect_file(tmp_path / "c.safetensors").kind == "hypernetwork"


def network(width: int, spec: Hypernetwork, seed: int = 0) -> Perceptron:
    torch.manual_seed(seed)
    return Perceptron(
        {
            f"linear.{name}": t.detach()
            for name, t in build_network(width, spec).state_dict().items()
        }
    )


SPECS = [
    Hypernetwork({}, (1, 2, 2, 1), "mish"),
    Hypernetwork({}, (1, 1.5, 0.75, 1), "leakyrelu", layer_norm=True),
    Hypernetwork({}, (1, 2, 1), "linear", activate_output=True, dropout=(0, 0.3, 0)),
    Hypernetwork(
        {}, (1, 2, 3, 1), "swish", activate_output=True, layer_norm=True, dropout=(0, 0.1, 0.25, 0)
    ),
    Hypernetwork({}, (1, 1), "prelu", activate_output=True),
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.activation}-{len(s.structure)}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_structure_makes_the_round_trip(
    tmp_path: Path, spec: Hypernetwork, suffix: str, dtype: torch.dtype
) -> None:
    whole = replace(
        spec, pairs={64: (network(64, spec), network(64, spec, 1)), 192: (network(192, spec),) * 2}
    )
    adapter = Adapter(
        hypernetwork=whole,
        family="sd1",
        name="h",
        metadata={"ss_steps": "7", "ss_sd_model_name": "tiny"},
    )
    write_adapter(adapter, tmp_path / f"h{suffix}", dtype=dtype)
    again = read_adapter(tmp_path / f"h{suffix}")
    write_adapter(again, tmp_path / f"i{suffix}")
    if suffix == ".safetensors":
        assert (tmp_path / "h.safetensors").read_bytes() == (
            tmp_path / "i.safetensors"
        ).read_bytes()
    twice = read_adapter(tmp_path / f"i{suffix}")
    assert again.hypernetwork is not None and twice.hypernetwork is not None
    assert same(again.hypernetwork, twice.hypernetwork) and again.metadata == twice.metadata
    assert again.family == "sd1" and again.metadata["ss_sd_model_name"] == "tiny"
    assert again.hypernetwork.facts["step"] == "7"
    for ours, theirs in zip(again.hypernetwork.pairs.values(), whole.pairs.values()):
        for one, other in zip(ours, theirs):
            assert all(torch.equal(one.tensors[n], t.to(dtype)) for n, t in other.tensors.items())
    if suffix == ".pt":
        table = torch.load(tmp_path / "h.pt", weights_only=True)
        assert (
            table["activation_func"] == spec.activation
            and table["activate_output"] is spec.activate_output
        )
        assert set(A1111) <= set(table)


def test_what_a_file_leaves_out_is_read_as_a1111_does(tmp_path: Path) -> None:
    """The first files: two layers called linear1 and linear2, and nothing else."""
    names = {"linear.0": "linear1", "linear.1": "linear2"}

    def old(width: int) -> dict[str, Tensor]:
        return {
            f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t
            for n, t in half(width).items()
        }

    spec = read_adapter(save(tmp_path / "old.pt", {768: (old(768), old(768))})).hypernetwork
    assert spec is not None
    assert list(spec.pairs[768][0].tensors) == list(half(768))
    assert (spec.structure, spec.activation, spec.activate_output) == (
        (1.0, 2.0, 1.0),
        "linear",
        True,
    )
    table = {
        768: pair(768),
        "activation_func": None,
        "dropout_structure": None,
        "use_dropout": False,
    }
    spec = read_adapter(save(tmp_path / "none.pt", table)).hypernetwork
    assert spec is not None and spec.activation == "linear"


def test_dropout_switches_without_rates(tmp_path: Path) -> None:
    """1, 2, 2, 1 with 0.3 after hidden layers but the last: the dropout moves what follows
    by one.
    """
    tensors = half(768, 1, 2, 2, 1)
    moved = {
        n.replace("linear.2", "linear.5").replace("linear.1", "linear.3"): t
        for n, t in tensors.items()
    }
    table = {
        768: (moved, moved),
        "layer_structure": [1, 2, 2, 1],
        "activation_func": "relu",
        "use_dropout": True,
    }
    spec = read_adapter(save(tmp_path / "h.pt", table)).hypernetwork
    assert spec is not None and spec.dropout == (0.0, 0.3, 0.0, 0.0)


@pytest.mark.parametrize(
    ("widths", "family"), [((768,), "sd1"), ((1024, 320), "sd2"), ((2048,), "sdxl"), ((320,), "")]
)
def test_the_width_of_text_tells_the_family(
    tmp_path: Path, widths: tuple[int, ...], family: str
) -> None:
    assert (
        read_adapter(save(tmp_path / "h.pt", {width: pair(width) for width in widths})).family
        == family
    )


def without(table: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in table.items() if key != name}


K, V = pair(320)
FAULTS: dict[str, tuple[Any, str]] = {
    "a half is missing": ({320: (K,), 640: pair(640)}, r"320 is not a pair of networks"),
    "no table": ({320: (K, V), 640: [1, 2]}, r"640 is not a pair of networks"),
    "a tensor is missing": (
        {320: (K, without(V, "linear.1.bias"))},
        r"320\.v\.linear\.1\.bias is missing",
    ),
    "one too many": (
        {320: (K | {"linear.2.weight": K["linear.0.weight"]}, V)},
        r"320\.k\.linear\.2\.weight has no pl",
    ),
    "another width": (
        {640: (K, V)},
        r"640\.k\.linear\.0\.weight is \[640, 320\]; .* has \[1280, 640\] there",
    ),
    "another structure": (
        {320: (K, V), "layer_structure": [1, 3, 1]},
        r"320\.k\.linear\.0\.weight is",
    ),
    "activation moves": (
        {320: (K, V), "activation_func": "relu"},
        r"320\.k\.linear\.2\.weight is missing",
    ),
    "norm": ({320: (K, V), "is_layer_norm": True}, r"320\.k\.linear\.1\.weight is \[320, 640\]"),
    "whole numbers": (
        {320: (K, {n: t.int() for n, t in V.items()})},
        r"320\.v\.linear\.0\.weight has type",
    ),
    "no tensor": ({320: (K, V | {"linear.1.bias": 3})}, r"320\.v\.linear\.1\.bias is not a tensor"),
    "NaN": (
        {320: (K, V | {"linear.1.bias": torch.full((320,), float("nan"))})},
        r"320\.v\.linear\.1\.bias holds NaN",
    ),
    "unknown activation": (
        {320: (K, V), "activation_func": "softmax"},
        r"activation_func 'softmax' is none .* mish",
    ),
    "no word": ({320: (K, V), "activation_func": [1]}, r"activation_func '\[1\]' is none"),
    "structure of words": (
        {320: (K, V), "layer_structure": "1,2,1"},
        r"layer_structure 1,2,1 is not a list of numbers",
    ),
    "open end": (
        {320: (K, V), "layer_structure": [1, 2]},
        r"layer_structure 1,2 does not begin and end with 1",
    ),
    "nothing between": (
        {320: (K, V), "layer_structure": [1, 0, 1]},
        r"layer_structure 1,0,1 is not of numbers above 0",
    ),
    "immense": (
        {320: (K, V), "layer_structure": [1, 1e300, 1]},
        r"layer_structure .* out of all bounds",
    ),
    "width": ({10**9: (K, V)}, r"1000000000 is not a width of attention layers"),
    "dropout": (
        {320: (K, V), "dropout_structure": [0, 1.5, 0]},
        r"dropout_structure 0,1.5,0 is not of 3 numbers",
    ),
    "dropout count": (
        {320: (K, V), "dropout_structure": [0, 0]},
        r"dropout_structure 0,0 is not of 3 numbers",
    ),
    "no switch": ({320: (K, V), "is_layer_norm": "yes"}, r"is_layer_norm 'yes' is neither"),
    "a stray tensor": ({320: (K, V), "extra": torch.ones(2)}, r"extra: konomi knows no such layer"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_files_name_what_is_wrong(tmp_path: Path, case: str) -> None:
    table, match = FAULTS[case]
    with pytest.raises(FileFormatError, match=match) as error:
        read_adapter(save(tmp_path / "h.pt", table))
    assert str(error.value).startswith(f"{tmp_path / 'h.pt'}: ") and "\n" not in str(error.value)


def flat(*skipped: str) -> dict[str, Tensor]:
    named = {
        f"320.{h}.{n}": t.clone() for h, table in (("k", K), ("v", V)) for n, t in table.items()
    }
    return {name: tensor for name, tensor in named.items() if name not in skipped}


def test_faulty_safetensors_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    cases: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        (flat("320.v.linear.0.bias"), {}, r"320\.v\.linear\.0\.bias is missing"),
        (flat(*(n for n in flat() if ".v." in n)), {}, r"320\.v\.linear\.0\.weight is missing"),
        (flat() | {"note": torch.ones(1)}, {}, r"note: konomi knows no such layer"),
        (flat(), {"hypernetwork": "{"}, r"metadata hypernetwork is not JSON"),
        (flat(), {"hypernetwork": "[]"}, r"metadata hypernetwork is not a table"),
        (
            flat(),
            {"hypernetwork": json.dumps({"layer_structure": [1, float("nan"), 1]})},
            r"out of all bounds",
        ),
        ({"other": torch.ones(2)}, {"hypernetwork": "{}"}, r"holds no network"),
    ]
    for tensors, metadata, match in cases:
        save_file(tensors, path, metadata)
        with pytest.raises(FileFormatError, match=match):
            read_adapter(path)
    save_file(flat(), path)
    spec = read_adapter(path).hypernetwork
    assert spec is not None and torch.equal(
        spec.pairs[320][0].tensors["linear.0.weight"], K["linear.0.weight"]
    )


def test_hostile_and_cut_files_are_refused(a1111: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("ran",))

    with pytest.raises(FileFormatError, match="refused"):
        read_adapter(save(tmp_path / "evil.pt", {320: (K, V), "name": Evil()}))
    whole = a1111.read_bytes()
    for share in (0.2, 0.9):
        (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FileFormatError, match=r"cut short|damaged"):
            read_adapter(tmp_path / "cut.pt")
    (tmp_path / "page.pt").write_text("<html><body>not found</body></html>")
    with pytest.raises(FileFormatError, match="web page"):
        read_adapter(tmp_path / "page.pt")


def test_nothing_broken_is_written(tmp_path: Path) -> None:
    broken = Hypernetwork(
        {64: (Perceptron({"linear.0.weight": torch.full((64, 64), float("inf"))}),) * 2}, (1, 1)
    )
    for name in ("h.pt", "h.safetensors"):
        with pytest.raises(
            FileFormatError, match=r"64\.k\.linear\.0\.weight holds NaN or infinity"
        ):
            write_adapter(Adapter(hypernetwork=broken), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_lora_format_does_not_hold_it(a1111: Path, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="'kohya' is not a format that holds a hypernetwork"):
        convert_adapter(a1111, tmp_path / "x.safetensors", "kohya")


def test_activations_are_torchs_own() -> None:
    """Lower-case names of torch's classes; `swish` alone is a web UI's."""
    for name, made in ACTIVATIONS.items():
        kind = type(made())
        assert kind is nn.Hardswish if name == "swish" else kind.__name__.lower() == name
