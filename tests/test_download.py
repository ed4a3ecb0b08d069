"""Against a server on 127.0.0.1 that can be told to misbehave."""

import hashlib
import http.server
import os
import re
import threading

import pytest

from triptych import download
from triptych.download import fetch

BODY = os.urandom(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    ranges = True  # honour HTTP Range
    cut: list[int] = []  # after how many bytes to drop each coming connection
    body = BODY

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if self.path == "/missing":
            return self.send_error(404)
        if begin and begin >= len(server.body):
            return self.send_error(416)
        data = server.body[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: server.cut.pop(0)] if server.cut else data)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_fetch_checks_and_keeps(server, tmp_path):
    path = fetch(server.address, tmp_path / "new" / "data.bin", md5=MD5, sha256=hashlib.sha256(BODY).hexdigest())
    assert path.read_bytes() == BODY and leftovers(tmp_path / "new") == ["data.bin"]
    fetch(server.address, path, md5="not asked for again")
    assert server.asked == [None]


def test_broken_connections_are_resumed(server, tmp_path):
    server.cut = [100_000, 50_000]
    path = fetch(server.address, tmp_path / "data.bin", md5=MD5)
    assert path.read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path):
    server.cut = [1000, 1000, 1000]
    with pytest.raises(FileNotFoundError, match="3000 bytes are kept and will be continued"):
        fetch(server.address, tmp_path / "data.bin", md5=MD5)
    assert leftovers(tmp_path) == ["data.bin.part"]
    assert fetch(server.address, tmp_path / "data.bin", md5=MD5).read_bytes() == BODY
    assert server.asked[-1] == "bytes=3000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_left_may_be_of_another_file(server, tmp_path, ranges):
    server.ranges = ranges
    (tmp_path / "data.bin.part").write_bytes(b"something else")
    assert fetch(server.address, tmp_path / "data.bin", md5=MD5).read_bytes() == BODY


def test_a_complete_part_is_only_renamed(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(BODY)
    assert fetch(server.address, tmp_path / "data.bin", md5=MD5).read_bytes() == BODY


def test_a_wrong_file_is_named_and_not_kept(server, tmp_path):
    server.body = b"<html>Please log in</html>"
    with pytest.raises(ValueError, match=f"data.bin: its md5 is .*, not {MD5}. Nothing was kept"):
        fetch(server.address, tmp_path / "data.bin", md5=MD5)
    assert leftovers(tmp_path) == []


def test_no_network_is_one_sentence_with_address_and_place(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError) as error:
        fetch(server.address, tmp_path / "data.bin", md5=MD5, timeout=2)
    for part in (server.address, str(tmp_path / "data.bin"), "dataset.root="):
        assert part in str(error.value)


def test_not_found_and_not_http(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="HTTP 404"):
        fetch(server.address.replace("data.bin", "missing"), tmp_path / "data.bin")
    with pytest.raises(ValueError, match="not an http or https address"):
        fetch("file:///etc/passwd", tmp_path / "data.bin")


def test_several_at_once_fetch_one_file_once(server, tmp_path):
    threads = [
        threading.Thread(target=fetch, args=(server.address, tmp_path / "data.bin"), kwargs={"md5": MD5})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "data.bin").read_bytes() == BODY and server.asked == [None]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(download.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="data.bin is not in .*, which cannot be written: put it there"):
        fetch("http://127.0.0.1:9/data.bin", tmp_path / "data.bin")
