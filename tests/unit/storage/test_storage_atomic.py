import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from konomi.errors import RunError
from konomi.storage import atomic
from konomi.storage.atomic import (
    check_free_space,
    publish_folder,
    sweep_temporaries,
    temporary_beside,
    write_file,
    write_folder,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "好み 🙂.safetensors"
    write_text(path, "old")
    with write_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == [path.name]


def test_an_error_inside_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), write_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("event", ["fsync", "replace", "open"])
def test_a_refusal_at_any_event_names_the_path_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, code: int
) -> None:
    path = tmp_path / "x.bin"
    write_text(path, "old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path if event == "replace" else os, event, refuse)
        with pytest.raises(RunError, match=r"x\.bin: .*\."), write_file(path) as temporary:
            if event != "open":
                temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.bin"]


def test_other_errors_of_the_system_are_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, write_file(tmp_path / "x"):
        raise OSError(errno.ETIMEDOUT, "slow")
    assert not isinstance(caught.value, RunError)


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    final = tmp_path / "step-000100"
    with write_folder(final) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        assert not final.exists()
    assert (final / "inner" / "a").read_text() == "1"
    with pytest.raises(RunError, match="exists already"), write_folder(final) as temporary:
        (temporary / "b").write_text("2")
    assert names(tmp_path) == ["step-000100"] and names(final) == ["inner"]
    with write_folder(final, replace=True) as temporary:
        (temporary / "b").write_text("2")
    assert names(tmp_path) == ["step-000100"] and names(final) == ["b"]


def test_everything_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(atomic, "sync_file", lambda path: events.append(f"file {path.name}"))
    monkeypatch.setattr(atomic, "sync_folder", lambda path: events.append(f"folder {path.name}"))
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1]
    )
    source = tmp_path / "t"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a").touch()
    (source / "b").touch()
    publish_folder(source, tmp_path / "final")
    assert events.index("rename") == len(events) - 2
    assert events[-1] == f"folder {tmp_path.name}"
    assert {"file a", "file b", "folder inner", "folder t"} == set(events[:-2])


def test_leftovers_of_a_killed_process_are_swept_and_others_kept(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from konomi.storage.atomic import write_file, write_folder\n"
        "with write_folder(sys.argv[1] + '/f') as a, write_file(sys.argv[1] + '/x.bin') as b:\n"
        "    (a / 'w').write_text('1'); b.write_text('2'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    code = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode
    assert code == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    own = temporary_beside(tmp_path / "mine.bin")
    own.touch()
    foreign = tmp_path / ".partial-00000000-1-1-00000000-x"
    foreign.touch()
    bystander = tmp_path / ".partial-notes"
    bystander.touch()
    assert len(sweep_temporaries(tmp_path)) == 2
    assert set(names(tmp_path)) == {own.name, foreign.name, bystander.name}
    os.utime(foreign, (0, 0))
    assert sweep_temporaries(tmp_path) == [foreign]


def test_a_reused_process_number_does_not_keep_a_leftover(tmp_path: Path) -> None:
    name = temporary_beside(tmp_path / "x").name.split("-")
    name[3] = "1"  # another start time than this process has
    leftover = tmp_path / "-".join(name)
    leftover.touch()
    assert sweep_temporaries(tmp_path) == [leftover]


def test_very_long_names_fit_into_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / ("好" * 80 + ".png")
    with write_file(path) as temporary:
        temporary.touch()
    assert path.exists()


def test_free_space_is_told_with_both_figures(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(RunError, match=r"8192\.0 TiB are needed and .* are free"):
        check_free_space(tmp_path, 2**53)
