"""The network's own equality with torch-fidelity's is shown by bench/inception_equality.py."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from triptych.metric import FrechetDistance, Inception
from triptych.metric.inception import ADDRESS, FILE, tensorflow_resize
from triptych.metric.published import published, sha256_of

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 9000


@pytest.fixture(scope="module")
def network() -> Inception:
    torch.manual_seed(0)
    return Inception(pretrained=False)


def test_size_of_the_published_file(network):
    """566 tensors, 23.85 million parameters: the file's."""
    assert len(network.state_dict()) == 566
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(23.85e6, rel=1e-3)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_resize_like_tensorflow():
    """T-F1: index * (old / new), no half-pixel centres: 0, 1/2, 1, 1 of two pixels."""
    x = torch.tensor([10.0, 30.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    assert tensorflow_resize(x, 4)[0, 0].tolist() == [[10, 20, 30, 30]] * 4
    assert tensorflow_resize(x.mT, 4)[0, 0].T.tolist() == [[10, 20, 30, 30]] * 4
    big = torch.rand(1, 2, 8, 6)
    torch.testing.assert_close(tensorflow_resize(big, 2), big[:, :, ::4, ::3])  # no antialiasing


def test_features_and_logits(network):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = network(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(network.logits(features, bias=True), network.fc(features))
    torch.testing.assert_close(network.logits(features) + network.fc.bias, network.fc(features))


def test_grey_images_are_repeated_with_a_warning():
    """T-F16"""
    grey = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="photographs in colour"):
        assert torch.equal(Inception.colour(grey), torch.cat([grey] * 3, 1))
    with pytest.raises(ValueError, match="3 channels"):
        Inception.colour(grey.expand(-1, 4, -1, -1))


# Where the weights come from


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, from the byte asked for."""

    asked: list[str | None] = []

    def do_GET(self):  # noqa: N802
        span = self.headers["Range"]
        self.asked.append(span)
        body = CONTENT[int(span.removeprefix("bytes=").rstrip("-")) :] if span else CONTENT
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("PLACE", raising=False)
    Handler.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


def test_download_once(server, tmp_path):
    path = published(f"{server}/{NAME}", None, "PLACE")
    assert path == tmp_path / "hub" / "checkpoints" / NAME and path.read_bytes() == CONTENT
    assert published(f"{server}/{NAME}", None, "PLACE") == path
    assert Handler.asked == [None]


def test_download_goes_on_where_it_stopped(server, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert published(f"{server}/{NAME}", None, "PLACE").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=1000-"]


def test_a_damaged_part_is_fetched_again(server, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").write_bytes(b"x" * 1000)
    assert published(f"{server}/{NAME}", None, "PLACE").read_bytes() == CONTENT


def test_what_does_not_have_the_checksum_of_its_name_is_refused(server, tmp_path):
    wrong = NAME.replace(NAME[8:16], "0" * 8)
    with pytest.raises(ValueError, match="its sha256 is .*, not 00000000"):
        published(f"{server}/{wrong}", None, "PLACE")
    assert [p.suffix for p in (tmp_path / "hub" / "checkpoints").iterdir()] == [".lock"]


def test_given_place_and_environment_come_first(server, tmp_path, monkeypatch):
    mine, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    mine.write_bytes(b"1"), other.write_bytes(b"2")
    monkeypatch.setenv("PLACE", str(other))
    assert published(f"{server}/{NAME}", mine, "PLACE") == mine
    assert published(f"{server}/{NAME}", None, "PLACE") == other
    with pytest.raises(FileNotFoundError, match="absent.pth; it can be downloaded from"):
        published(f"{server}/{NAME}", tmp_path / "absent.pth", "PLACE")
    assert Handler.asked == []


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TRIPTYCH_INCEPTION", raising=False)
    monkeypatch.setattr("triptych.metric.inception.ADDRESS", f"http://127.0.0.1:1/{FILE}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(FileNotFoundError) as error:
        Inception()
    assert str(tmp_path / "hub" / "checkpoints" / FILE) in str(error.value)
    assert "metric.extractor.weights=" in str(error.value) and "TRIPTYCH_INCEPTION" in str(error.value)
    assert ADDRESS.startswith("https://") and ADDRESS.endswith(FILE)


def test_another_file_is_refused_in_a_sentence(tmp_path):
    torch.save({"ema": {}, "state_dict": {}}, tmp_path / "last.ckpt")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("last.ckpt", "page.pth", "empty.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of the Inception") as error:
            Inception(tmp_path / name)
        assert len(str(error.value)) < 400


@pytest.mark.slow
def test_yamls_with_weights_of_ones_own(network, tmp_path, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setenv("TRIPTYCH_INCEPTION", str(tmp_path / "weights.pth"))
    fid = instantiate(OmegaConf.load(ROOT / "conf" / "metric" / "fid.yaml"))
    assert isinstance(fid, FrechetDistance) and fid.extractor.name == "inception"
    assert fid.extractor.sha256 == sha256_of(tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="not 6726825d"):
        fid.update(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), real=True)
    metrics = instantiate(OmegaConf.load(ROOT / "conf" / "metric" / "inception.yaml"))
    assert set(metrics) == {"fid", "kid", "inception_score", "precision_recall"}
    assert len({id(metric.extractor) for metric in metrics.values()}) == 1
    for name in ("kid", "inception_score", "precision_recall", "fid_infinity"):
        instantiate(OmegaConf.load(ROOT / "conf" / "metric" / f"{name}.yaml"))
