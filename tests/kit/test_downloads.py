"""Downloads from a folder of this machine: whole and verified, or nothing."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fourfold.kit import downloads
from fourfold.kit.downloads import cache_folder, download

DATA = bytes(range(256)) * 4000  # more than one chunk
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(tmp_path):
    source = tmp_path / "source" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(DATA)
    return source.as_uri()


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_a_file_comes_whole_once(url, tmp_path, digits, monkeypatch):
    room = tmp_path / "cache" / "deep"
    path = download(url, SHA[:digits].upper(), room)
    assert path == room / "weights.pth" and path.read_bytes() == DATA
    assert [p.name for p in room.iterdir()] == ["weights.pth"]
    monkeypatch.setattr(downloads, "_fetch", None)  # a second call needs no network
    assert download(url, SHA[:digits], room) == path


def test_a_damaged_copy_in_the_cache_is_fetched_again(url, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"half")
    assert download(url, SHA, tmp_path).read_bytes() == DATA


def test_another_hash_keeps_nothing(url, tmp_path):
    room = tmp_path / "cache"
    with pytest.raises(ValueError, match="expected 00000000") as error:
        download(url, "00000000", room)
    assert list(room.iterdir()) == [] and "\n" not in str(error.value)


@pytest.mark.parametrize("sha256", ["", "abc", "x" * 8, "0" * 65])
def test_a_hash_that_is_none(url, sha256, tmp_path):
    with pytest.raises(ValueError, match="expected 8 to 64 hexadecimal digits"):
        download(url, sha256, tmp_path)


@pytest.mark.parametrize(
    "missing", ["file:///nowhere/weights.pth", "http://127.0.0.1:9/weights.pth"]
)
def test_what_cannot_be_reached_is_one_sentence(missing, tmp_path):
    with pytest.raises(ConnectionError, match="cannot be reached") as error:
        download(missing, SHA, tmp_path)
    assert str(tmp_path / "weights.pth") in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path != "/none.pth"
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            if known:
                self.wfile.write(DATA[:1000] if self.path == "/cut.pth" else DATA)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_answers(server, tmp_path):
    assert download(f"{server}/weights.pth", SHA[:8], tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("name", ["cut.pth", "none.pth"])
def test_half_a_file_or_none_leaves_nothing(server, tmp_path, name):
    with pytest.raises((ValueError, ConnectionError)):
        download(f"{server}/{name}", SHA, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fourfold"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "fourfold"
