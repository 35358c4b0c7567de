"""A web server as nginx serves a folder: an index of links, ETags made of size and time of change, ranges; and connections that break."""

import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

SECTIONS = '<a href="../">../</a>\n<a href="?C=N;O=D">Name</a>\n'


class WebIndex:
    """Serves `folder` at `url`. read: bytes sent of each file. cut: names of files whose next answer breaks off in its middle.

    ranges, sizes: whether it serves parts of files, and says how large they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.read, self.cut, self.ranges, self.sizes = folder, {}, [], True, True
        self.server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the other side has hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, owner, *arguments):
        self.owner = owner
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.owner.folder / unquote(self.path).lstrip("/")
        if path.is_dir():
            names = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
            links = "".join(f'<a href="{quote(name)}">{name}</a>\n' for name in names)
            return self.send(200, {"Content-Type": "text/html"}, f"<html><body>{SECTIONS}{links}</body></html>".encode())
        if not path.is_file():
            return self.send(404, {}, b"")
        content, stat = path.read_bytes(), path.stat()
        headers = {"ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"', "Content-Type": "application/octet-stream"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.owner.ranges else None
        if not part:
            return self.send(200, headers, content)
        start, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        return self.send(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}, content[start : end + 1])

    def send(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        sized = self.owner.sizes or status != 200 or headers.get("Content-Type") == "text/html"
        if sized:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        name = self.path.rsplit("/", 1)[-1]
        if name in self.owner.cut and "ETag" in headers:
            self.owner.cut.remove(name)
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)
        if "ETag" in headers:
            self.owner.read[name] = self.owner.read.get(name, 0) + len(content)
