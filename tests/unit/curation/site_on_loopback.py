"""A picture site on this machine that answers as Danbooru and Gelbooru 0.2 do, with every fault
that a site or the way to it can have.
"""

import hashlib
import io
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from PIL import Image

PAGE = 20


def picture(number):
    """A PNG of its own for each number."""
    data = io.BytesIO()
    Image.new("RGB", (64 + number % 3, 64), (number % 256, number // 256 % 256, 90)).save(
        data, "png"
    )
    return data.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        site, parts = self.server.site, urlsplit(self.path)
        with site.lock:
            site.asked[parts.path] += 1
            site.agents.add(self.headers["User-Agent"])
            nth = site.asked[parts.path]
        if parts.path in ("/posts.json", "/index.php"):
            self.page(site, {key: value[0] for key, value in parse_qs(parts.query).items()}, nth)
        else:
            self.file(site, int(parts.path.rpartition("/")[2].partition(".")[0]), nth)

    def page(self, site, query, nth):
        if fault := site.page_faults.pop(nth, None):
            return self.answer(*fault)
        tags = query["tags"].split()
        below = [int(tag[4:]) for tag in tags if tag.startswith("id:<")]
        below += [int(query["page"][1:])] if query.get("page", "").startswith("b") else []
        site.searches.append(tags)
        posts = [site.post(n) for n in range(site.count, 0, -1) if not below or n < below[0]]
        page = posts[:PAGE] if not site.endless else [site.post(n) for n in range(PAGE, 0, -1)]
        return self.answer(200, json.dumps(page).encode(), {"Content-Type": "application/json"})

    def file(self, site, number, nth):
        fault = site.faults.get(number)
        if fault == "429 once" and nth == 1:
            return self.answer(429, b"slower", {"Retry-After": "7"})
        if fault == "503 once" and nth == 1:
            return self.answer(503, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        if fault == "cut once" and nth == 1:
            return self.answer(200, picture(number)[:40], {"Content-Length": "100000"}, cut=True)
        if fault == "html":
            return self.answer(200, b"<!DOCTYPE html><html>challenge</html>")
        if fault == "451":
            return self.answer(451, b"")
        if fault == "away":
            return self.answer(302, b"", {"Location": f"http://localhost:{site.port}/data/1.png"})
        if fault == "round":
            return self.answer(302, b"", {"Location": self.path})
        if fault == "zeros":
            return self.answer(200, bytes(3 << 20))
        if fault == "other file":
            return self.answer(200, picture(number + 100000))
        return self.answer(200, picture(number), {"Content-Type": "image/png"})

    def answer(self, status, content, headers=None, *, cut=False):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            cut = True
        if cut:
            self.close_connection = True


class FakeSite:
    """`count` posts with numbers from 1; `faults`: number -> what is wrong with its file."""

    def __init__(self, count, faults=None, changes=None, gelbooru=False):
        self.count, self.faults, self.changes = count, faults or {}, changes or {}
        self.gelbooru, self.endless = gelbooru, False
        self.page_faults, self.searches = {}, []
        self.asked, self.agents, self.lock, self.port = Counter(), set(), threading.Lock(), 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def post(self, number):
        common = {"id": number, "score": number % 10, "source": f"https://example.org/{number}"}
        if self.gelbooru:
            post = common | {
                "directory": number // 100, "image": f"{number}.png", "width": 64, "height": 64,
                "rating": "general", "tags": " 1girl cat_ears don&#039;t ",
                "hash": hashlib.md5(picture(number)).hexdigest(),
            }  # fmt: skip
        else:
            post = common | {
                "md5": hashlib.md5(picture(number)).hexdigest(), "rating": "g",
                "file_url": f"{self.address}/data/{number}.png", "image_width": 64,
                "image_height": 64, "tag_string": "1girl cat_ears highres painter toriko ^_^",
                "tag_string_general": "1girl cat_ears ^_^", "tag_string_artist": "painter",
                "tag_string_character": "toriko", "tag_string_copyright": "",
                "tag_string_meta": "highres",
            }  # fmt: skip
        return post | self.changes.get(number, {})


@contextmanager
def served(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.site, site.port = True, site, server.server_address[1]
    server.handle_error = lambda request, client: None  # A killed collector hangs up.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
