import io
import stat
import tarfile
import zipfile

import pytest

from triptych.dataset.archive import unpack


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


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
