"""Where an encoder is not there, a finished training is measured by what is, and that is said."""

import pytest
import torch

from konomi.config.evaluation import EncodersConfig
from konomi.errors import ModelError
from konomi.evaluation import chosen_encoders
from konomi.evaluation.chosen_encoders import IMAGE, TEXT, open_encoders

CPU = torch.device("cpu")


@pytest.fixture
def there(monkeypatch):
    """Names of the encoders that are on the machine; nothing is loaded."""
    names = set()

    def folder_of(name):
        if name not in names:
            raise ModelError(f"{name}: not here, and the hub cannot be reached.")

    def load(image, text, *, copies, device):
        return image, text

    monkeypatch.setattr(chosen_encoders, "folder_of", folder_of)
    monkeypatch.setattr(chosen_encoders, "load_encoders", load)
    monkeypatch.setattr(
        chosen_encoders, "cached_snapshot", lambda name, _: name if name in names else None
    )
    return names


def test_the_small_clip_measures_what_the_small_base_draws(there):
    assert open_encoders(EncodersConfig(), small_base=True, device=CPU) == (("tiny", "tiny"), ())


def test_the_usual_encoders_where_they_are(there):
    there.update({IMAGE, TEXT})
    assert open_encoders(EncodersConfig(), small_base=False, device=CPU) == ((IMAGE, TEXT), ())


def test_what_is_there_stands_in_and_is_named(there):
    there.add("openai/clip-vit-base-patch32")
    chosen, notes = open_encoders(EncodersConfig(), small_base=False, device=CPU)
    assert chosen == ("openai/clip-vit-base-patch32",) * 2
    assert [f"hf download {name}" in note for name, note in zip((TEXT, IMAGE), notes)] == [True] * 2
    there.clear()
    chosen, notes = open_encoders(EncodersConfig(), small_base=False, device=CPU)
    assert chosen == ("tiny", "tiny") and len(notes) == 2
    assert all("\n" not in note and len(note) < 300 for note in notes)


def test_a_damaged_encoder_that_nobody_named_does_not_stop_anything(there, monkeypatch):
    there.update({IMAGE, TEXT})

    def load(image, text, *, copies, device):
        if IMAGE in (image, text):
            raise ModelError(f"{IMAGE}: is damaged.")
        return image, text

    monkeypatch.setattr(chosen_encoders, "load_encoders", load)
    chosen, notes = open_encoders(EncodersConfig(), small_base=False, device=CPU)
    assert chosen == ("tiny", "tiny") and "is damaged" in notes[0]
    with pytest.raises(ModelError):
        open_encoders(EncodersConfig(image=IMAGE, text="tiny"), small_base=False, device=CPU)


@pytest.mark.slow
def test_a_file_of_sscd_that_is_not_there_is_said_whatever_else_is_open(tmp_path):
    config = EncodersConfig(copies=str(tmp_path / "sscd.pt"))
    with pytest.raises(ModelError, match="no such file of SSCD"):
        open_encoders(config, small_base=True, device=CPU)
