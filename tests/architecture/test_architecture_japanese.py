"""Every message has its Japanese: what lacks one is named here, with the place where it goes."""

import importlib.util
from functools import cache
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "messages.py"


@cache
def tool():
    spec = importlib.util.spec_from_file_location("messages", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_message_has_japanese(monkeypatch):
    monkeypatch.setenv("KONOMI_LANGUAGE", "ja")
    lacking = [f"{one.file}:{one.line} {one.text}" for one in tool().without_japanese()]
    told = (
        "add the Japanese to a file of src/konomi/cli/japanese/; a text that nobody reads, to "
        "tools/messages.py"
    )
    assert lacking == [], told


def test_a_message_without_japanese_is_noticed(monkeypatch):
    monkeypatch.setenv("KONOMI_LANGUAGE", "ja")
    messages = tool()
    known = messages.Message("a.py", 1, "RunError", "{}: is damaged (not readable as JSON).")
    unknown = messages.Message("a.py", 1, "RunError", "{}: the moon is in the wrong house.")
    assert messages.has_japanese(known) and messages.is_message(known)
    assert not messages.has_japanese(unknown) and messages.is_message(unknown)


def test_most_of_the_source_is_looked_at():
    messages = tool()
    found = [one for one in messages.messages() if messages.is_message(one)]
    assert len(found) > 1000
    assert {"RunError", "Finding", "help", "fault"} <= {one.kind for one in found}


def test_each_exception_is_needed():
    messages = tool()
    texts = [one for one in messages.messages() if one.kind not in messages.OURS]
    unused = [path for path in messages.NOT_READ if not any(one.file == path for one in texts)]
    others = [one.text for one in texts if one.file not in messages.NOT_READ]
    unused += [
        pattern
        for pattern in messages.EXCEPTIONS
        if not any(messages.re.search(pattern, text) for text in others)
    ]
    assert unused == []
