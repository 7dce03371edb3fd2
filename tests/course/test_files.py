"""Files are written whole or not at all; the house knows its own root."""

import stat

import pytest

from fourfold.course import files
from fourfold.course.errors import CourseError
from fourfold.course.files import House, digest, write_whole


def test_a_stopped_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "notes.txt"
    write_whole(path, "old")

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_text_and_bytes_are_written_as_they_are_and_folders_are_made(tmp_path):
    write_whole(tmp_path / "a" / "b.txt", "é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\n".encode()
    write_whole(tmp_path / "c.bin", b"\x00\r\n")
    assert (tmp_path / "c.bin").read_bytes() == b"\x00\r\n"


def test_a_file_keeps_its_mode(tmp_path):
    path = tmp_path / "run"
    path.write_text("old")
    path.chmod(0o755)
    write_whole(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_folder_without_chapters_is_no_house(tmp_path):
    with pytest.raises(CourseError, match="holds no chapters/ folder"):
        House(tmp_path)


def test_the_digest_tells_texts_apart():
    assert digest("a") == digest("a") != digest("b")
