"""Scanning large image folders: seconds and memory by the number of images.

    python bench/manifest.py [COUNT ...]

Makes folders of empty files, half of them with captions, and scans each in a process of its own:
first with every file new (a stand-in for the look into an image, so that disk and decoder do not
count), then again with the index it left. Seconds are of processor time, which a busy neighbour
does not change much.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.containers import Entry
from konomi.data.file_index import Measured
from konomi.data.sources import scan

COUNTS = (10_000, 50_000, 100_000)


def make_images(folder: Path, count: int) -> None:
    """`count` empty files in folders of a thousand; every second one has a caption of usual
    length.
    """
    for number in range(count):
        inside = folder / f"part {number // 1000:03}"
        if number % 1000 == 0:
            inside.mkdir()
        (inside / f"image {number:06}.png").touch()
        if number % 2:
            caption = (
                f"a photo of thing {number}, red hat, blue sky, standing on grass, best quality"
            )
            (inside / f"image {number:06}.txt").write_text(caption, encoding="utf-8")


def look(entry: Entry) -> Measured:
    """What a real look would return, in size and variety."""
    number = int(entry.name[-10:-4])
    return Measured(f"{number:064x}", 256 + number % 1024, 256 + number % 768)


def scan_once(folder: Path, index: Path) -> None:
    """Scan and print: images, seconds, peak memory in MB before and after."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    data = DataConfig(sources=(SourceConfig(path=str(folder), trigger="sks", class_noun="thing"),))
    manifest = scan(data, index=index, measure=look)
    seconds = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(len(manifest.records), f"{seconds:.3f}", before // 1024, after // 1024)


def measured(count: int) -> list[tuple[float, int, int]]:
    """(seconds, MB before, MB at the peak) of the first and the second scan."""
    with tempfile.TemporaryDirectory() as folder:
        images, index = Path(folder) / "images", Path(folder) / "index.jsonl"
        images.mkdir()
        make_images(images, count)
        rows = []
        for _ in range(2):
            command = [sys.executable, __file__, "--scan", str(images), str(index)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found, seconds, before, after = done.stdout.split()
            assert int(found) == count
            rows.append((float(seconds), int(before), int(after)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("counts", nargs="*", type=int, default=COUNTS)
    parser.add_argument("--scan", nargs=2, metavar=("FOLDER", "INDEX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scan:
        scan_once(*map(Path, arguments.scan))
        return
    print("| images | first scan, CPU s | peak MB | second scan, CPU s | peak MB | us an image |")
    print("|---|---|---|---|---|---|")
    for count in arguments.counts:
        (first, _, first_peak), (second, _, second_peak) = measured(count)
        print(
            f"| {count:,} | {first:.2f} | {first_peak} | {second:.2f} | {second_peak} | "
            f"{second / count * 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
