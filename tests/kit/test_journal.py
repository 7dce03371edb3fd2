"""Journals that are torn, shared, forked and refused."""

import json
import multiprocessing
import os
import time
import warnings

import pytest

from fourfold.kit.journal import open_journal, read_journal


def parse(content):
    """Whole lines only: what follows the last newline is torn."""
    length = content.rfind(b"\n") + 1
    return [json.loads(line) for line in content[:length].splitlines()], length


def append(path, *records):
    with open_journal(path, parse) as journal:
        for record in records:
            journal.append(record)
        return journal.records


def test_what_is_appended_is_read_again_in_order(tmp_path):
    path = tmp_path / "a" / "b" / "journal.jsonl"
    assert read_journal(path, parse) == []
    assert append(path, {"n": 1}, {"n": 2}) == [{"n": 1}, {"n": 2}]
    assert append(path, {"n": 3}) == read_journal(path, parse) == [{"n": n} for n in (1, 2, 3)]


def test_a_record_is_in_the_file_before_append_returns(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path, parse) as journal:
        journal.append({"n": 1})
        assert path.read_bytes() == b'{"n": 1}\n'


def test_a_torn_line_is_cut_off_when_the_file_is_opened_not_when_it_is_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')
    assert read_journal(path, parse) == [{"n": 1}]
    assert path.read_bytes() == b'{"n": 1}\n{"n": '
    append(path, {"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'


def test_a_last_line_that_counts_as_whole_gets_its_newline(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}')
    with open_journal(path, lambda content: ([json.loads(content)], len(content))) as journal:
        journal.append({"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'


def test_a_file_that_is_refused_stays_as_it_is(tmp_path):
    def refuse(content):
        raise ValueError("not mine")

    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"something else")
    for use in (lambda: append_with(path, refuse), lambda: read_journal(path, refuse)):
        with pytest.raises(ValueError, match="not mine"):
            use()
    assert path.read_bytes() == b"something else"


def append_with(path, parse):
    with open_journal(path, parse) as journal:
        journal.append({})


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "journal.jsonl", tmp_path):
        with pytest.raises(OSError, match=r"path is .*; expected a file that can be written"):
            append(path)


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path, parse):
        with pytest.raises(RuntimeError, match=r"journal\.jsonl is in use"):
            append(path)
        assert read_journal(path, parse) == [], "reading is free"
    append(path)


fork_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def hold_and_fork(path, children):
    """Holds the journal, forks a child that lives on, and waits to be killed."""
    with open_journal(path, parse) as journal:
        journal.append({"n": 1})
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        children.put(child.pid)
        time.sleep(60)


@fork_only
def test_a_forked_child_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    path, fork = tmp_path / "journal.jsonl", multiprocessing.get_context("fork")
    children = fork.Queue()
    parent = fork.Process(target=hold_and_fork, args=(path, children))
    parent.start()
    child = children.get(timeout=30)
    try:
        with pytest.raises(RuntimeError, match="in use"):
            append(path)
        parent.kill()
        parent.join()
        os.kill(child, 0)  # it lives
        # The child may be killed or slow between its fork and its first line of Python.
        for _ in range(100):
            try:
                append(path, {"n": 2})
                break
            except RuntimeError:
                time.sleep(0.05)
        assert read_journal(path, parse) == [{"n": 1}, {"n": 2}]
    finally:
        os.kill(child, 9)


@fork_only
def test_a_forked_child_does_not_end_the_lock_of_its_parent(tmp_path):
    path = tmp_path / "journal.jsonl"
    with open_journal(path, parse) as journal:
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        with pytest.raises(RuntimeError, match="in use"):
            append(path)
        journal.append({"n": 1})


@pytest.mark.skipif(os.name == "nt", reason="Windows locks by other means")
def test_a_file_system_without_locks_is_told_and_the_journal_works(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "journal.jsonl"
    with pytest.warns(UserWarning, match=r"journal\.jsonl cannot be locked .*not supported"):
        append(path, {"n": 1})
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert append(path) == [{"n": 1}]


def test_a_line_that_is_not_taken_whole_is_told(tmp_path):
    class Full:
        name = "journal.jsonl"

        def write(self, line):
            return len(line) // 2

    with open_journal(tmp_path / "journal.jsonl", parse) as journal:
        journal._file = Full()
        with pytest.raises(OSError, match=r"could not take a whole line; is the disk full\?"):
            journal.append({"n": 1})
        assert journal.records == []
