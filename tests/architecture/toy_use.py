"""What a user does with a base of the toy family: run by test_architecture_new_family.py in a copy
of konomi that has it, in an empty folder.
"""

import dataclasses
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

import konomi
from konomi.errors import KonomiError
from konomi.models.random_base import random_base
from konomi.models.save import save_folder
from konomi.training.events import Previewed, Step, Warned

BASE, IMAGES = Path("base"), Path("images")
LONG = "a photo of sks dog " + "in a very large meadow " * 3
FIXED = (
    'data.cache.folder="cache"', "run.batch_size=2", "run.seed=11", "run.device=cpu",
    "run.checkpoint_every=2",
)  # fmt: skip


def recipe(kind, output, *overrides, steps=4):
    return konomi.recipe_from_flags(
        kind,
        images=[IMAGES],
        base=str(BASE),
        trigger="sks",
        class_noun="dog",
        output=output,
        steps=steps,
        overrides=[*FIXED, *overrides],
    )


def trained(kind, output, *overrides):
    """The events of a whole run, and its result."""
    events = list(konomi.train(recipe(kind, output, *overrides)))
    return events, Path(events[-1].path)


def tensors(path):
    if path.is_file():
        return load_file(path)
    files = path.rglob("*.safetensors")
    return {f"{f.parent.name} {n}": t for f in files for n, t in load_file(f).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def said(call):
    """The sentence with which something is refused."""
    try:
        call()
    except KonomiError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("it was not refused")


def drawn(output, told, *, prompt="sks dog", base=BASE, **options):
    (path,) = konomi.generate(
        [prompt], base=str(base), seed=3, output=output, tell=told.append, **options
    )
    return Image.open(path).convert("RGB")


def write_base_and_images():
    base = random_base("toyflow", seed=1)
    save_folder(base, BASE, dtype=torch.float32)
    IMAGES.mkdir()
    for index, size in enumerate([(64, 64), (64, 64), (96, 64)]):
        image = Image.new("RGB", size, (40 * index, 90, 200))
        ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill=(250, 20 * index, 60))
        image.save(IMAGES / f"{index}.png")
    (IMAGES / "0.txt").write_text(LONG)
    (IMAGES / "1.txt").write_text("a (sks:1.3) dog")
    return base


def check_folder(base):
    """It is what diffusers' layout is, and comes back as it went."""
    folders = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    assert sorted(path.name for path in BASE.iterdir() if path.is_dir()) == folders
    index = json.loads((BASE / "model_index.json").read_text())
    assert index["_class_name"] == "ToyFlowPipeline"
    assert index["transformer"] == ["diffusers", "ToyTransformer2DModel"]
    scheduler = json.loads((BASE / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    read = konomi.load_base(str(BASE), device="cpu")
    assert (read.family, read.latent_channels, read.size_step) == ("toyflow", 16, 8)
    assert read.process.prediction == "flow" and not read.notes
    for part in ("denoiser", "text_encoder", "vae"):
        assert_same(read.state(part), base.state(part))
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        mean, _ = read.vae.encode(pixels)
        torch.testing.assert_close(read.encode_images(pixels).mean, (mean - 0.2) * 0.6)
        torch.testing.assert_close(read.decode_latents((mean - 0.2) * 0.6), read.vae.decode(mean))
    report = konomi.inspect(BASE)
    assert (report.family, report.kind, report.problem) == ("toyflow", "model folder", "")


def train_and_resume(kind, *overrides):
    """A run in one piece is a run in two, bit for bit."""
    events, result = trained(kind, f"{kind}-whole", "run.preview_every=4", *overrides)
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert len(losses) == 4 and all(torch.tensor(losses).isfinite())
    assert any(isinstance(event, Previewed) for event in events)
    stop, halves = konomi.Stop(), []
    for event in konomi.train(recipe(kind, f"{kind}-halves", *overrides), stop=stop):
        if isinstance(event, Step):
            halves.append(event.loss)
            if event.step == 2:
                stop.request()
    for event in konomi.resume(f"{kind}-halves"):
        if isinstance(event, Step):
            halves.append(event.loss)
    assert halves == losses
    assert_same(tensors(Path(event.path)), tensors(result))
    return events, result


def lora():
    """Also that what the base has no such thing for is said before the first step."""
    events, result = train_and_resume(
        "lora", "method.text_rank=2", "method.rank=2", "text.clip_skip=2", "text.max_tokens=150",
        "text.emphasis=true", "memory.channels_last=true", "memory.gradient_checkpointing=true",
    )  # fmt: skip
    warnings = "\n".join(event.message for event in events if isinstance(event, Warned))
    for words in (
        "text.clip_skip = 2 does nothing in this run: the base's text encoder is read at one",
        "text.max_tokens = 150 does nothing in this run: the base's text encoder reads 40",
        "text.emphasis = true does nothing in this run: the base's text encoder has no weights",
        "memory.channels_last = true does nothing in this run: this base's denoiser has no conv",
        "1 caption is longer than 40 tokens (up to 87)",
        "Shorten them: the text encoder reads no more.",
    ):
        assert words in warnings, (words, warnings)
    with safe_open(result, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert metadata["modelspec.architecture"] == "toy-flow-v1/lora"
    assert {key.split(".")[0] for key in keys} >= {
        "lora_unet_blocks_0_attn_to_q", "lora_unet_blocks_1_down", "lora_te_mix",
    }  # fmt: skip
    report = konomi.inspect(result)
    assert (report.family, report.kind, report.problem) == ("toyflow", "lora", "")
    overrides = ["method.targets=!BLOCKS00", "method.blocks.ranks=*.attn.to_q:3,*.down:0"]
    _, chosen = trained("lora", "lora-blocks", *overrides, f"adapters={result}:2")
    sizes = {name: tuple(t.shape) for name, t in tensors(chosen).items() if "lora_down" in name}
    assert len(sizes) == 5 and all("blocks_1" in name for name in sizes)
    assert sizes["lora_unet_blocks_1_attn_to_q.lora_down.weight"] == (3, 16)
    assert report.layers == {"denoiser": 12, "text_encoder": 1} and not report.unknown
    assert report.readers == ()  # Nothing is claimed of programs whose rules are not known.
    told = []
    plain, changed = drawn("plain", told), drawn("changed", told, add=[f"{result}:8"], steps=3)
    assert plain.size == (64, 64) and plain.tobytes() != changed.tobytes()
    assert told == []
    for target in ("diffusers", "peft"):
        converted = konomi.convert(result, f"lora-{target}", to=target)
        again = drawn(f"changed-{target}", told, add=[f"{converted}:8"], steps=3)
        assert again.tobytes() == changed.tobytes()
    names = load_file(Path("lora-diffusers/pytorch_lora_weights.safetensors"))
    assert any(name.startswith("transformer.blocks.0.attn.to_q.lora_A") for name in names)


def full():
    blocks, _ = trained(
        "full", "blocks", "method.targets=BLOCKS01:attention,TE", "optimizer.learning_rate=0.01"
    )
    warnings = [event.message for event in blocks if isinstance(event, Warned)]
    assert any("trains 8 of 25 layers (TE, BLOCKS01)" in line for line in warnings), warnings
    _, result = train_and_resume(
        "full",
        "method.text_encoder=true",
        "optimizer.learning_rate=0.01",
        "save.precision=fp32",
    )
    assert (result / "model_index.json").is_file()
    before, after = tensors(BASE), tensors(result)
    changed = {name.split()[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer", "text_encoder"}
    told = []
    assert drawn("full", told, base=result).tobytes() != drawn("full", told).tobytes()


def what_it_lacks_is_refused():
    for kind in ("textual_inversion", "pivotal", "dreamartist", "custom_diffusion"):
        sentence = said(lambda kind=kind: list(konomi.train(recipe(kind, kind))))
        assert sentence == (
            f"{kind} learns a token, and the text encoder of base (Toy Flow) takes none beside its "
            "own. Use lora or full."
        )
    assert said(lambda: list(konomi.train(recipe("hypernetwork", "hypernetwork")))) == (
        "hypernetwork works on the layers called 'attention.kv', which base (Toy Flow) does not "
        "have. Use lora or full."
    )
    checkpoint = recipe("full", "full", "save.format=checkpoint")
    assert "Toy Flow has no form in one file" in said(lambda: list(konomi.train(checkpoint)))
    assert "no form in one file" in said(lambda: konomi.convert(BASE, "toy.safetensors"))
    assert "one prediction" in said(lambda: konomi.load_base(str(BASE), prediction="epsilon"))
    assert "ddim does not know flow matching" in said(lambda: drawn("x", [], sampler="ddim"))
    told = []
    drawn("told", told, prompt=f"({LONG}:1.2)", clip_skip=2, steps=2)
    assert told == [
        "--clip-skip has no effect: the base's text encoder is read at one layer.",
        "Brackets, BREAK and | in the prompt are drawn as text: the base's text encoder has no "
        "weights of words.",
        "The base's text encoder reads 40 tokens; the prompt has 94, and what follows is cut off.",
    ]


def a_word_of_another_base_is_refused():
    word = Path("word.safetensors")
    from safetensors.torch import save_file

    save_file({"emb_params": torch.zeros(2, 768)}, word)
    assert "takes no learned tokens" in said(lambda: drawn("x", [], add=[str(word)]))


if __name__ == "__main__":
    torch.manual_seed(0)
    check_folder(write_base_and_images())
    lora()
    full()
    what_it_lacks_is_refused()
    a_word_of_another_base_is_refused()
    report = konomi.check(recipe("dreambooth", "dreambooth", "method.train=lora"))
    assert dataclasses.is_dataclass(report)
