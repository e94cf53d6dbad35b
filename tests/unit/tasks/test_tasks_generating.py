"""`konomi generate`, without its command line."""

import subprocess
import sys

import pytest
import torch

from konomi import tasks
from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LowRank
from konomi.errors import ModelError
from konomi.formats.adapter_file import write_adapter
from konomi.models.load import load_base as open_base

HEAVY = ("diffusers", "transformers", "accelerate", "torch._dynamo", "sympy")
"""What a picture does not need, and what would take most of the time of a small one to import."""


def test_a_picture_is_drawn_without_importing_diffusers_or_transformers(tmp_path):
    code = f"""
import sys
from konomi import tasks
(path,) = tasks.generate(["a cat"], base="tiny", steps=1, size="64", output={str(tmp_path)!r})
assert path.is_file()
print([name for name in {HEAVY} if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr


KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def lora(path, width, **metadata):
    layers = {KEY: LowRank(torch.ones(2, width), torch.zeros(width, 2), 2.0)}
    write_adapter(Adapter(layers, family="sd1", metadata=metadata), path)


def test_an_adapter_of_a_later_prompt_that_does_not_fit_is_refused_before_the_first_picture(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lora(tmp_path / "wide.safetensors", 1280)
    with pytest.raises(ModelError, match=r"wide does not fit"):
        list(
            tasks.generate(
                ["a cat", "a dog <lora:wide:1>"], base="tiny", steps=1, size="64", output="out"
            )
        )
    assert not (tmp_path / "out").exists()


def test_a_lora_for_another_noise_process_is_told(tmp_path):
    lora(tmp_path / "v.safetensors", 160, ss_zero_terminal_snr="True")
    told = []
    options = {"base": "tiny", "steps": 1, "size": "64", "output": tmp_path, "tell": told.append}
    list(tasks.generate(["a cat"], add=[str(tmp_path / "v.safetensors")], **options))
    assert any(
        "v.safetensors says that it was trained with zero terminal SNR" in line for line in told
    )


def test_what_the_base_does_by_itself_and_a_sheet_of_one_picture_are_named(tmp_path):
    told = []
    options = {"base": "tiny", "steps": 1, "size": "64", "output": tmp_path, "tell": told.append}
    usual = {"clip_skip": open_base("tiny").clip_layer, "guidance_rescale": 0.0}
    assert len(list(tasks.generate(["a cat"], **usual, grid=True, **options))) == 1
    assert any("--clip-skip" in note and "no effect" in note for note in told)
    assert any("--guidance-rescale 0 has no effect" in note for note in told)
    assert any("--grid has no effect" in note for note in told)
    told.clear()
    assert len(list(tasks.generate(["a cat"], batch=2, **options))) == 1
    assert any(note.startswith("--batch 2: one picture in all") for note in told)
