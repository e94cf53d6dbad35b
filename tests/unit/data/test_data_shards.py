"""The store under the caches: durable, without pickles."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from konomi.data.shards import ShardStore


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half(tmp_path: Path) -> None:
    """kill -9 in the middle of writing the second shard: the first stays, the temporary file
    goes.
    """
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from konomi.data.shards import ShardStore\n"
        "import konomi.storage.tensor_file as file\n"
        "store = ShardStore(Path(sys.argv[1]))\n"
        "store.put('a', 'a', {'x': torch.ones(3)})\n"
        "store.flush()\n"
        "def killed(descriptor, block):\n"
        "    os.write(descriptor, bytes(block)[:9])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "file.write_all = killed\n"
        "store.put('b', 'b', {'x': torch.zeros(3)})\n"
        "store.flush()\n"
    )
    folder = tmp_path / "store"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(folder)], check=False, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(folder.iterdir())) == 2
    store = ShardStore(folder)
    assert list(store.open()) == []
    assert "a" in store and "b" not in store
    assert store.get("a")["x"].tolist() == [1, 1, 1]
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_no_pickle_in_caches() -> None:
    folder = Path(__file__).parents[3] / "src" / "konomi" / "data"
    for name in ("shards.py", "latent_cache.py", "text_cache.py"):
        source = (folder / name).read_text("utf-8")
        assert "pickle" not in source and "torch.load" not in source and "torch.save" not in source
