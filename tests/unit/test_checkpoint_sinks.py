"""Sinks: what counts as taken, what is refused, and what a program is and is not given."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
from pathlib import Path

import pytest

from kkp.audit.checkpoints import read_checkpoint
from kkp.audit.signed_lines import MAX_LINE_BYTES
from kkp.audit.sinks import CommandSink, FileSink, open_sink
from kkp.config import SinkAddress
from kkp.errors import AuditUnavailableError, ConfigError
from tests.fakes.logs import a_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.jsonl"


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def append(path: Path, text: bytes) -> None:
    """Write behind what is there, for the owner only."""
    path.touch(0o600)
    with path.open("ab") as file:
        file.write(text)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_there(path: Path) -> bool:
    return path.exists()


# Files.


async def test_a_file_takes_one_line_after_another_for_its_owner_only(path: Path) -> None:
    old = os.umask(0)
    try:
        for line in (b"one", b"two"):
            await FileSink(path).put(line)
    finally:
        os.umask(old)
    assert content(path) == b"one\ntwo\n"
    assert mode_of(path) == 0o600
    assert await FileSink(path).tail() == [b"one\n", b"two\n"]


async def test_a_file_that_is_not_there_holds_nothing_and_is_not_made_by_looking(path: Path) -> None:
    assert await FileSink(path).tail() == []
    assert not is_there(path)


async def test_a_line_begins_on_its_own_behind_one_that_was_cut_short(path: Path) -> None:
    await FileSink(path).put(b"one")
    append(path, b"cut sho")
    await FileSink(path).put(b"two")
    assert content(path) == b"one\ncut sho\ntwo\n"


async def test_the_highest_number_is_found_wherever_it_stands(path: Path) -> None:
    assert await FileSink(path).highest() == []
    lines = [a_checkpoint(records=1).line + b"\n"]
    for _ in range(11):
        lines.append(a_checkpoint(after=read_checkpoint(lines[-1].removesuffix(b"\n"))).line + b"\n")
    for number, order in enumerate((lines, lines[::-1], [*lines[6:], *lines[:6]])):
        file = path.with_name(f"{number}.jsonl")
        append(file, b"not one\n\n" + b"".join(order) + lines[-1][:-40])
        assert await FileSink(file).highest() == [lines[-1]]


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"one\n", b'{"checkpoint":{"seq":7}}\n', b"a" * MAX_LINE_BYTES * 2]
)
async def test_what_is_no_checkpoint_has_no_number(path: Path, text: bytes) -> None:
    append(path, text)
    assert await FileSink(path).highest() == []


async def test_of_a_long_file_the_last_whole_lines_are_read(path: Path) -> None:
    append(path, b"a" * MAX_LINE_BYTES + b"\n" + b"b" * MAX_LINE_BYTES + b"\n" + b"c\n")
    assert await FileSink(path).tail() == [b"b" * MAX_LINE_BYTES + b"\n", b"c\n"]


async def test_lines_of_several_writers_never_mix(path: Path) -> None:
    lines = [bytes([65 + number]) * 9000 for number in range(20)]
    await asyncio.gather(*(FileSink(path).put(line) for line in lines))
    assert sorted(content(path).splitlines()) == lines


def a_link(path: Path) -> str:
    target = path.with_name("elsewhere")
    target.touch(0o600)
    path.symlink_to(target)
    return "can't be opened"


def a_dangling_link(path: Path) -> str:
    path.symlink_to(path.with_name("nowhere"))
    return "can't be opened"


def a_directory(path: Path) -> str:
    path.mkdir(0o700)
    return "is no file"


def a_pipe(path: Path) -> str:
    os.mkfifo(path, 0o600)
    return "is no file"


def one_that_the_group_can_read(path: Path) -> str:
    path.touch(0o640)
    path.chmod(0o640)
    return f"can be touched by others; run: chmod 600 {path}"


def one_of_somebody_else(path: Path) -> str:
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    return "belongs to somebody else"


@pytest.mark.parametrize(
    "make",
    [
        a_link,
        a_dangling_link,
        a_directory,
        a_pipe,
        one_that_the_group_can_read,
        pytest.param(
            one_of_somebody_else,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away"),
        ),
    ],
)
async def test_a_file_that_is_not_ours_alone_is_refused_at_start_and_later(path: Path, make: object) -> None:
    early = FileSink(path)
    assert callable(make)
    problem = make(path)
    with pytest.raises(ConfigError, match=r"^KKP_CHECKPOINT_SINK: ") as refusal:
        FileSink(path)
    assert problem in str(refusal.value)
    with pytest.raises(AuditUnavailableError):
        await early.put(b"one")
    with pytest.raises(ConfigError):
        await early.tail()
    assert not path.with_name("nowhere").exists()


async def test_a_write_that_stops_half_way_is_an_error_and_spoils_no_later_line(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(AuditUnavailableError, match="too large"):
            await FileSink(path).put(b"one line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await FileSink(path).put(b"one line")
    assert content(path) == b"one l\none line\n"


async def test_a_directory_that_is_gone_is_an_error_and_one_that_never_was_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "checkpoints.jsonl"
    with pytest.raises(ConfigError) as refusal:
        FileSink(path)
    (problem,) = refusal.value.problems
    assert problem == f"KKP_CHECKPOINT_SINK: its directory {path.parent} does not exist; make it"
    path.parent.mkdir()
    sink = FileSink(path)
    path.parent.rmdir()
    with pytest.raises(AuditUnavailableError):
        await sink.put(b"one")


# Programs.


async def test_a_program_is_handed_the_line_and_none_of_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KKP_MASTER_KEY", "canary")
    monkeypatch.setenv("OTHER", "kept")
    got = tmp_path / "got"
    sink = CommandSink(program(tmp_path / "keep", f"cat > {got}; env > {got}.env; echo noise"))
    await sink.put(b"one")
    assert content(got) == b"one\n"
    environment = got.with_name("got.env").read_text()
    assert "OTHER=kept" in environment
    assert "KKP_" not in environment
    assert "canary" not in environment


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$", "exec false", "cat > /dev/null; exit 1"])
async def test_a_program_that_does_not_exit_with_0_has_not_taken_it(tmp_path: Path, script: str) -> None:
    with pytest.raises(AuditUnavailableError, match="exit code"):
        await CommandSink(program(tmp_path / "keep", script)).put(b"one")


async def test_a_program_that_reads_nothing_may_still_take_it(tmp_path: Path) -> None:
    await CommandSink(program(tmp_path / "keep", "exit 0")).put(b"x" * 1_000_000)


async def test_a_program_may_print_as_much_as_it_likes(tmp_path: Path) -> None:
    script = "cat > /dev/null; head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"
    await CommandSink(program(tmp_path / "keep", script)).put(b"one")


async def test_a_program_that_hangs_is_killed_at_the_deadline_with_its_children(tmp_path: Path) -> None:
    left = tmp_path / "left"
    keep = program(tmp_path / "keep", f"(sleep 1; touch {left}) & sleep 60")
    with pytest.raises(AuditUnavailableError, match=r"longer than 0\.2 s"):
        await CommandSink(keep, deadline_seconds=0.2).put(b"one")
    await asyncio.sleep(1.2)
    assert not left.exists()


async def test_a_program_that_can_not_be_run_is_an_error(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.write_bytes(b"\x7fELF but no program")
    keep.chmod(0o700)
    with pytest.raises(AuditUnavailableError, match="can't be run"):
        await CommandSink(keep).put(b"one")


def test_a_program_that_others_can_change_is_refused(tmp_path: Path) -> None:
    keep = program(tmp_path / "keep", "exit 0")
    keep.chmod(0o720)
    with pytest.raises(ConfigError, match="others can change"):
        CommandSink(keep)


@pytest.mark.parametrize("mode", [None, 0o600])
def test_what_is_no_program_is_refused(tmp_path: Path, mode: int | None) -> None:
    keep = tmp_path / "keep"
    if mode is not None:
        keep.touch(mode)
    with pytest.raises(ConfigError, match="no program"):
        CommandSink(keep)


# Addresses.


def test_an_address_says_which_kind(path: Path) -> None:
    assert isinstance(open_sink(SinkAddress("file", path)), FileSink)
    assert isinstance(open_sink(SinkAddress("command", program(path, "exit 0"))), CommandSink)
