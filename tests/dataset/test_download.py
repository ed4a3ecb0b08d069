"""Against a server on 127.0.0.1 that can be told to misbehave."""

import hashlib
import http.server
import io
import os
import re
import stat
import tarfile
import threading
import zipfile

import pytest

from triptych.dataset import download
from triptych.dataset.download import fetch, unpack

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


def tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            data = b"content" if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_unpack(tmp_path):
    folder = unpack(tar(tmp_path / "a.tar.gz", "set/one.bin", "set/deep/two.bin"), tmp_path / "set")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.bin")) == ["deep/two.bin", "one.bin"]
    unpack(tar(tmp_path / "b.tar.gz", "one.bin"), tmp_path / "flat")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("zipped/one.bin", "content")
    unpack(tmp_path / "c.zip", tmp_path / "zipped")
    assert leftovers(tmp_path) == ["a.tar.gz", "b.tar.gz", "c.zip", "flat", "set", "zipped"]
    assert all((tmp_path / name / "one.bin").read_bytes() == b"content" for name in ("flat", "set", "zipped"))


@pytest.mark.parametrize(
    "evil",
    [
        "../out.bin",
        "set/../../out.bin",
        "/out.bin",
        "..\\out.bin",
        "C:/out.bin",
        link("set/link", "/etc/passwd"),
        link("set/link", "../../out.bin"),
        link("set/hard", "one.bin", tarfile.LNKTYPE),
        link("set/fifo", "", tarfile.FIFOTYPE),
    ],
    ids=lambda evil: evil if isinstance(evil, str) else f"{evil.name}-{evil.linkname}",
)
def test_a_member_that_leads_out_is_refused(tmp_path, evil):
    archive = tar(tmp_path / "a.tar.gz", "set/one.bin", evil)
    with pytest.raises(ValueError, match="is refused: its member .* is a link or leads out of the folder"):
        unpack(archive, tmp_path / "set")
    assert leftovers(tmp_path) == ["a.tar.gz"]


def test_evil_zips_are_refused(tmp_path):
    for name, mode in (("../out.bin", 0), ("set/link", stat.S_IFLNK | 0o777)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(ValueError, match="is refused"):
            unpack(tmp_path / "a.zip", tmp_path / "set")
    assert leftovers(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path, share):
    path = tar(tmp_path / "a.tar.gz", *(f"set/{k}.bin" for k in range(200)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="a.tar.gz cannot be unpacked .* delete it"):
        unpack(path, tmp_path / "set")
    assert leftovers(tmp_path) == ["a.tar.gz"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(download.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="data.bin is not in .*, which cannot be written: put it there"):
        fetch("http://127.0.0.1:9/data.bin", tmp_path / "data.bin")
