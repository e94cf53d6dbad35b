"""What doctor sees of a graphics card that PyTorch cannot use."""

import shutil

import torch

from konomi.tasks import machine


def bus(tmp_path, vendor, kind):
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    return tmp_path


def test_an_nvidia_card_is_seen_on_the_bus_without_its_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert machine.nvidia_card(bus(tmp_path, "0x10de", "0x030000"))


def test_an_nvidia_sound_device_and_another_makers_card_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not (machine.Path("/proc/driver/nvidia").exists()):
        assert not machine.nvidia_card(bus(tmp_path / "a", "0x10de", "0x040300"))
        assert not machine.nvidia_card(bus(tmp_path / "b", "0x1002", "0x030000"))


def test_a_cpu_build_beside_a_card_is_marked_with_the_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine, "nvidia_card", lambda: True)
    row = next(row for row in machine._devices() if row.what == "device")
    assert not row.ok
    assert "pip install" in row.advice and machine.CUDA_INDEX in row.advice
