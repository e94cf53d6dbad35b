"""Collecting from a site on loopback: nothing twice, nothing missing, nothing outside the folder,
never faster than agreed, and each refusal told for what it is.
"""

import json
import subprocess
import sys
import time

import pytest
from site_on_loopback import FakeSite, picture, served

import konomi
from konomi.cli.main import main
from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.curation.collecting import Collected, Collector, CollectReport, Wish, accounts
from konomi.curation.fetching import USER_AGENT, Fetcher
from konomi.curation.sites import SITES, chosen_site
from konomi.data.captions import final_caption
from konomi.data.sources import scan
from konomi.errors import DataError, KonomiError, RecipeError

DANBOORU, SAFEBOORU, GELBOORU = SITES


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now, self.sleeps, self.told = 0.0, [], []

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def fetcher(self, site):
        return Fetcher(site.domain, 1.0, self.told.append, clock=lambda: self.now, sleep=self.sleep)


def collected(fake, folder, *, program=DANBOORU, clock=None, stop_after=None, account=None, **wish):
    site = chosen_site(f"{program.name}:{fake.address}")
    asked = Wish(**({"tags": ("cat_ears",), "site": site, "output": folder, "limit": 1000} | wish))
    fetcher = (clock or Clock()).fetcher(site)
    report, done = None, 0
    for news in Collector(asked, account or {}, fetcher).run():
        report = news if isinstance(news, CollectReport) else report
        done += isinstance(news, Collected) and news.path is not None
        if stop_after is not None and done >= stop_after:
            break
    fetcher.close()
    return report


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_pictures_captions_and_origins(tmp_path):
    clock = Clock()
    with served(FakeSite(45)) as fake:
        report = collected(fake, tmp_path, clock=clock, trigger="sks")
    assert (report.new, report.present, report.left_out) == (45, 45, {})
    name = "127.0.0.1-45"
    assert (tmp_path / f"{name}.png").read_bytes() == picture(45)
    assert (tmp_path / f"{name}.txt").read_text() == "sks, 1girl, cat ears, painter, toriko, ^_^\n"
    row = rows(tmp_path)[0]
    assert row["file_name"] == f"{name}.png" and row["id"] == 45 and row["rating"] == "general"
    assert row["source"] == "https://example.org/45" and row["artist"] == ["painter"]
    assert len(row["sha256"]) == 64
    # Newest first, each once, in three pages and an empty one; a second between two requests.
    assert [row["id"] for row in rows(tmp_path)] == list(range(45, 0, -1))
    assert fake.asked["/posts.json"] == 4 and report.requests == 49
    assert clock.now == pytest.approx(48.0)
    assert fake.agents == {USER_AGENT} and USER_AGENT.startswith("konomi/")


def test_what_was_collected_is_data_to_train_on(tmp_path):
    with served(FakeSite(3)) as fake:
        collected(fake, tmp_path, captions="grouped")
    source = SourceConfig(path=str(tmp_path), trigger="toriko")
    manifest = scan(DataConfig(sources=(source,)))
    captions = [final_caption(record, CaptionConfig(), None) for record in manifest.records]
    assert captions == ["toriko, painter, 1girl, cat ears, ^_^"] * 3
    assert not manifest.excluded and not manifest.findings


def test_stopped_anywhere_it_goes_on_and_nothing_is_fetched_twice(tmp_path):
    with served(FakeSite(50)) as fake:
        for stop_after in (7, 0, 22, None):
            report = collected(fake, tmp_path, stop_after=stop_after)
        # A line cut off by a stop, and a file that never got its line.
        table = tmp_path / "metadata.jsonl"
        table.write_bytes(table.read_bytes() + b'{"file_name": "127')
        (tmp_path / ".127.0.0.1-3.part").write_bytes(b"half")
        again = collected(fake, tmp_path)
    files = [count for path, count in fake.asked.items() if path.startswith("/data/")]
    assert sorted(row["id"] for row in rows(tmp_path)) == list(range(1, 51))
    assert files == [1] * 50 and (report.present, again.new) == (50, 0)
    assert not list(tmp_path.glob(".*.part"))


def test_what_was_removed_since_is_not_fetched_again(tmp_path):
    with served(FakeSite(6)) as fake:
        collected(fake, tmp_path)
        (tmp_path / "127.0.0.1-4.png").unlink()
        report = collected(fake, tmp_path)
    assert not (tmp_path / "127.0.0.1-4.png").exists() and report.present == 5
    assert report.notes == (
        "1 pictures were collected before and removed since; they are not fetched again.",
    )


def test_faults_of_files_are_waited_out_or_counted(tmp_path):
    faults = {
        12: "429 once", 11: "503 once", 10: "cut once", 9: "html", 8: "451", 7: "away",
        6: "round", 5: "zeros", 4: "other file",
    }  # fmt: skip
    changes = {3: {"md5": "", "file_url": "https://elsewhere.example/3.png"}}
    clock = Clock()
    with served(FakeSite(13, faults, changes)) as fake:
        report = collected(fake, tmp_path, clock=clock, max_mib=1)
    assert sorted(row["id"] for row in rows(tmp_path)) == [1, 2, 10, 11, 12, 13]
    assert report.left_out == {
        "a page in HTML in place of a picture": 1,
        "taken down": 1,
        "its address lies outside the site": 3,
        "larger than 1 MiB": 1,
        "the file is not what the site says it is": 1,
    }
    assert 7.0 in clock.sleeps and any("waiting for 7 s" in told for told in clock.told)
    assert (tmp_path / "127.0.0.1-10.png").read_bytes() == picture(10)
    assert {path.name.split(".")[-1] for path in tmp_path.iterdir()} == {"png", "txt", "jsonl"}


def test_filters_and_what_sites_hide_are_counted(tmp_path):
    changes = {
        9: {"is_banned": True, "file_url": None, "md5": None},
        8: {"file_url": None},
        7: {"rating": "e"},
        6: {"tag_string": "cat_ears ai-generated"},
        5: {"image_width": 20},
        4: {"file_url": "http://127.0.0.1/film.mp4"},
        3: {"tag_string": "cat_ears comic"},
    }
    with served(FakeSite(9, changes=changes)) as fake:
        report = collected(fake, tmp_path, min_side=32, exclude=("comic",), min_score=2)
        everything = collected(fake, tmp_path / "all", ratings=(), ai_made=True)
    assert [row["id"] for row in rows(tmp_path)] == [2]
    assert report.left_out == {
        "removed at the artist's wish": 1,
        "not shown without an account": 1,
        "another rating": 1,
        "marked as made by a model": 1,
        "too small": 1,
        "no picture (a film, an archive)": 1,
        "with a tag that is left out": 1,
        "a lower score": 1,
    }
    assert everything.new == 6


def test_the_same_picture_under_two_numbers_is_kept_once(tmp_path):
    same = FakeSite(3).post(3)["md5"]
    changes = {2: {"md5": same}, 1: {"md5": "", "file_url": ""}}
    with served(FakeSite(3, changes=changes)) as fake:
        fake.changes[1] = {"md5": "", "file_url": f"{fake.address}/data/3.png"}
        report = collected(fake, tmp_path)
    assert report.left_out == {"the same picture again": 2} and report.new == 1


def test_the_older_program_writes_addresses_in_parts(tmp_path):
    changes = {2: {"image": "../../../etc/2.png"}}
    with served(FakeSite(25, changes=changes, gelbooru=True)) as fake:
        report = collected(fake, tmp_path / "a", program=SAFEBOORU)
        assert [tags[1:] for tags in fake.searches] == [[], ["id:<6"], ["id:<1"]]
        with pytest.raises(RecipeError, match="does not say which tag"):
            list(konomi.collect("a", output=tmp_path, site="safebooru", captions="grouped"))
    assert report.new == 25
    assert (tmp_path / "a" / "127.0.0.1-2.txt").read_text() == "1girl, cat ears, don't\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_more_tags_than_a_search_takes_are_looked_for_in_what_it_finds(tmp_path):
    with served(FakeSite(4, changes={2: {"tag_string": "1girl cat_ears"}})) as fake:
        report = collected(fake, tmp_path, tags=("1girl", "cat_ears", "toriko", "score:>3"))
        assert fake.searches[0] == ["1girl", "cat_ears", "score:>3", "rating:g"]
        collected(fake, tmp_path / "b", tags=("1girl", "cat_ears", "toriko"), account=dict.fromkeys(
            DANBOORU.secrets, "x"))  # fmt: skip
        assert fake.searches[-1] == ["1girl", "cat_ears", "toriko", "rating:g"]
    assert report.left_out == {"without all tags": 1} and report.new == 3
    assert "toriko was looked for in what it found" in report.notes[0]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((403, b"<html>", {"cf-mitigated": "challenge"}), "behind Cloudflare"),
        ((401, b"{}"), "the account in DANBOORU_LOGIN and DANBOORU_API_KEY is not known"),
        ((422, b"{}"), "it allows 2 tags a search"),
        ((410, b"{}"), "shows no more pages"),
        ((418, b"{}"), "it refuses (status 418)"),
        ((200, b"<html>"), "is no list of posts"),
        ((200, b'[{"id": "x"}]'), "a post without a number"),
        ((429, b"", {"Retry-After": "86400"}), "asks to wait for 1440 minutes"),
    ],
)
def test_a_refused_search_is_told_in_one_line(tmp_path, fault, told):
    with served(FakeSite(5)) as fake:
        fake.page_faults[1] = fault
        with pytest.raises(DataError) as raised:
            collected(fake, tmp_path)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_a_site_that_is_down_and_one_that_repeats_itself(tmp_path):
    clock = Clock()
    with served(FakeSite(5)) as fake:
        fake.page_faults |= dict.fromkeys(range(1, 9), (502, b""))
        with pytest.raises(DataError, match=r"did not answer \(status 502\), 6 times"):
            collected(fake, tmp_path, clock=clock)
        assert sum(clock.sleeps) == pytest.approx(2 + 4 + 8 + 16 + 32)
        fake.page_faults.clear()
        fake.endless = True
        with pytest.raises(DataError, match="the same posts again"):
            collected(fake, tmp_path)
    assert len(rows(tmp_path)) == 20
    # Nobody listens there any more; what is asked for, and an account with it, is not told.
    with pytest.raises(DataError, match=r"did not answer \(ConnectionError\)") as raised:
        collected(fake, tmp_path, account=dict.fromkeys(DANBOORU.secrets, "secret"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"site": "pixiv"}, "takes one of danbooru, safebooru, gelbooru, or NAME:URL"),
        ({"site": "danbooru:ftp://a"}, "or NAME:URL"),
        ({"limit": 0}, "--limit is 0"),
        ({"ratings": ["safe"]}, "--rating safe: it takes general"),
        ({"site": "gelbooru"}, "GELBOORU_USER_ID and GELBOORU_API_KEY"),
    ],
)
def test_wishes_that_cannot_be(tmp_path, monkeypatch, asked, told):
    for name in GELBOORU.secrets:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KonomiError) as raised:
        list(konomi.collect("cat", output=tmp_path / "new", **asked))
    assert told in str(raised.value) and not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KonomiError, match="file"):
        list(konomi.collect("cat", output=tmp_path / "file" / "new"))


def test_half_an_account_is_none():
    with pytest.raises(RecipeError, match="only DANBOORU_LOGIN is set"):
        accounts(DANBOORU, {"DANBOORU_LOGIN": "a"})
    both = dict.fromkeys(DANBOORU.secrets, "a")
    assert accounts(DANBOORU, both | {"HOME": "/"}) == both
    assert accounts(chosen_site("safebooru"), {}) == {}


def test_the_command(tmp_path, capsys, monkeypatch):
    with served(FakeSite(4, {2: "html"})) as fake:
        quick = type(DANBOORU)("danbooru", fake.address, "127.0.0.1", seconds_between=0.0)
        monkeypatch.setattr("konomi.curation.sites.SITES", (quick,))
        asked = ["collect", "cat_ears", "--output", str(tmp_path / "d"), "--limit", "3"]
        assert main(asked) == 0
        out = capsys.readouterr()
        assert "3 new pictures, 3 in all, 5 requests" in out.out
        assert "left out: 1, a page in HTML in place of a picture" in out.out
        assert "konomi check --images" in out.out and "collecting: 0/3" in out.err
        assert main([*asked, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["new"] == 0 and told["present"] == 3
    assert not (tmp_path / "d" / "run.lock").exists()


KILLED = """
import sys
from konomi.curation.collecting import Collector, Wish
from konomi.curation.fetching import Fetcher
from konomi.curation.sites import chosen_site
from pathlib import Path
site = chosen_site(f"danbooru:{sys.argv[1]}")
wish = Wish(tags=("cat_ears",), site=site, output=Path(sys.argv[2]), limit=10**6)
for news in Collector(wish, {}, Fetcher(site.domain, 0.0, print)).run():
    pass
"""


@pytest.mark.slow
def test_killed_three_times_every_post_is_there_once(tmp_path):
    count = 120
    with served(FakeSite(count, dict.fromkeys(range(1, count, 19), "503 once"))) as fake:
        command = [sys.executable, "-c", KILLED, fake.address, str(tmp_path)]
        for least in (10, 40, 80):
            started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while len(list(tmp_path.glob("*.png"))) < least:
                assert started.poll() is None
                time.sleep(0.01)
            started.kill()
            started.wait()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(row["id"] for row in rows(tmp_path)) == list(range(1, count + 1))
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.txt"))) == count
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
