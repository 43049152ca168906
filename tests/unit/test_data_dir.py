"""The data directory: key files are made once, for one reader, and refused when anything is off."""

from __future__ import annotations

import base64
import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kkp.config import decode_master_key
from kkp.data_dir import (
    is_exposed,
    master_key,
    prepare,
    prepare_database,
    read_secret,
    whole_file,
    write_all,
    write_new,
    write_secret,
)
from kkp.errors import ConfigError
from kkp.web.tls import check_tls
from tests.http.certificates import new_pair

pytestmark = pytest.mark.promise(40)

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=lambda umask: f"umask {umask:03o}", autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run each test under a umask that hides nothing, the usual one and a strict one."""
    wanted: int = request.param
    before = os.umask(wanted)
    yield wanted
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def key_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# A database that is not to be made.


def test_a_database_that_must_exist_is_neither_made_nor_taken_empty(tmp_path: Path) -> None:
    path = tmp_path / "kkp.db"
    with pytest.raises(ConfigError, match="can't be opened"):
        prepare_database(path, create=False)
    assert not path.exists()
    key_file(path, b"")
    with pytest.raises(ConfigError, match="is empty; name the database, or run `kkp init`"):
        prepare_database(path, create=False)
    key_file(path, b"SQLite format 3\0")
    prepare_database(path, create=False)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        prepare_database(path, create=False)


# The directory.


def test_a_new_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    prepare(tmp_path / "kkp")
    assert mode(tmp_path / "kkp") == 0o700


def test_a_directory_deep_down_is_made_with_its_parents(tmp_path: Path) -> None:
    prepare(tmp_path / "a" / "b" / "kkp")
    assert mode(tmp_path / "a" / "b" / "kkp") == 0o700


def test_a_directory_that_is_already_there_is_kept_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "kkp"
    prepare(directory)
    (directory / "kkp.db").write_bytes(b"data")
    prepare(directory)
    assert (directory / "kkp.db").read_bytes() == b"data"


@pytest.mark.parametrize("permissions", [0o710, 0o720, 0o740, 0o701, 0o702, 0o704, 0o755, 0o777, 0o1777])
def test_a_directory_that_others_can_enter_is_refused_with_the_cure(tmp_path: Path, permissions: int) -> None:
    directory = tmp_path / "kkp"
    directory.mkdir()
    directory.chmod(permissions)
    with pytest.raises(ConfigError) as refusal:
        prepare(directory)
    assert f"chmod 700 {directory}" in str(refusal.value)
    assert mode(directory) == permissions


@pytest.mark.parametrize("permissions", [0o700, 0o500])
def test_a_directory_that_only_its_owner_can_enter_is_taken(tmp_path: Path, permissions: int) -> None:
    directory = tmp_path / "kkp"
    directory.mkdir()
    directory.chmod(permissions)
    prepare(directory)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    closed, opened = tmp_path / "closed", tmp_path / "open"
    closed.mkdir()
    closed.chmod(0o700)
    opened.mkdir()
    opened.chmod(0o755)
    (tmp_path / "to-closed").symlink_to(closed)
    (tmp_path / "to-open").symlink_to(opened)
    prepare(tmp_path / "to-closed")
    with pytest.raises(ConfigError, match="chmod 700"):
        prepare(tmp_path / "to-open")


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in ("file", "file/below", "dangling", "circle", "n" * 300):
        with pytest.raises(ConfigError, match="KKP_DATA_DIR"):
            prepare(tmp_path / path)
    assert not (tmp_path / "nowhere").exists()


# Writing secrets.


def test_a_secret_file_is_one_line_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    write_secret(path, SECRET)
    assert path.read_bytes() == SECRET.encode() + b"\n"
    assert mode(path) == 0o600
    assert read_secret(path, "NAME") == SECRET


def test_a_secret_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    write_secret(path, SECRET)
    with pytest.raises(ConfigError, match="can't be written") as refusal:
        write_secret(path, "other")
    assert "other" not in str(refusal.value)
    assert read_secret(path, "NAME") == SECRET


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "root.key"
    link.symlink_to(target)
    with pytest.raises(ConfigError, match="can't be written"):
        write_secret(link, SECRET)
    assert not target.exists()


def test_a_secret_can_not_be_written_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        write_secret(tmp_path / "nowhere" / "root.key", SECRET)


def test_the_file_and_its_directory_are_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_secret(tmp_path / "root.key", SECRET)
    file, directory = synced
    assert file.endswith("(deleted)")  # it gets its name when it is whole
    assert directory == tmp_path.name


def test_a_secret_that_could_not_be_made_durable_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="can't be written"):
        write_secret(tmp_path / "root.key", SECRET)
    assert not list(tmp_path.iterdir())


# Filesystems that can do less.


def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


FILESYSTEMS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], ...]] = {
    "all that it takes": (),
    "no files without a name": (without_nameless_files,),
    "no hard links, or no proc": (without_links,),
    "neither": (without_nameless_files, without_links),
}


@pytest.fixture(params=FILESYSTEMS)
def filesystem(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the filesystem what some don't have."""
    for take in FILESYSTEMS[request.param]:
        take(monkeypatch)


@pytest.mark.usefixtures("filesystem")
def test_a_new_file_is_whole_its_owners_alone_and_lies_alone(tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    write_new(tmp_path / "opened", content)
    assert [path.name for path in tmp_path.iterdir()] == ["opened"]
    assert (tmp_path / "opened").read_bytes() == content
    assert mode(tmp_path / "opened") == 0o600


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("is_link", [True, False])
def test_whatever_has_the_name_is_kept(tmp_path: Path, is_link: bool) -> None:  # noqa: FBT001  the table's
    path = tmp_path / "opened"
    if is_link:
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(b"before")
    with pytest.raises(FileExistsError):
        write_new(path, b"after")
    assert list(tmp_path.iterdir()) == [path]
    assert is_link or path.read_bytes() == b"before"


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("end", [OSError(errno.EIO, "EIO"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("moment", ["before a byte is written", "when all are"])
def test_a_write_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException, moment: str
) -> None:
    def fail(*_: object) -> int:
        raise end

    monkeypatch.setattr(os, "write" if moment.startswith("before") else "fsync", fail)
    with pytest.raises(type(end)):
        write_new(tmp_path / "opened", b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["os.write", "os.fsync", "os.link"])
def test_a_kill_before_the_file_has_its_name_leaves_nothing(tmp_path: Path, moment: str) -> None:
    script = f"""
import os
from pathlib import Path
from kkp.data_dir import write_new

{moment} = lambda *_, **__: os.kill(os.getpid(), {signal.SIGKILL:d})
write_new(Path("opened"), b"content")
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)  # noqa: S603  our own
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("filesystem")
def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    write_secret(tmp_path / "root.key", SECRET)
    with pytest.raises(ConfigError):
        write_secret(tmp_path / "root.key", SECRET)
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


# Files that are written piece by piece.

PIECE = bytes(range(256)) * 4096


def written(path: Path, *pieces: bytes, replaces: bool = False, end: BaseException | None = None) -> None:
    with whole_file(path, replaces=replaces) as descriptor:
        for piece in pieces:
            write_all(descriptor, piece)
        if end is not None:
            raise end


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("replaces", [True, False])
def test_a_file_of_many_pieces_is_whole_its_owners_alone_and_lies_alone(
    tmp_path: Path, *, replaces: bool
) -> None:
    written(tmp_path / "opened", PIECE, b"", PIECE, replaces=replaces)
    assert [path.name for path in tmp_path.iterdir()] == ["opened"]
    assert (tmp_path / "opened").read_bytes() == PIECE * 2
    assert mode(tmp_path / "opened") == 0o600


@pytest.mark.usefixtures("filesystem")
def test_a_file_is_not_there_before_it_is_whole_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "opened"
    with whole_file(path) as descriptor:
        write_all(descriptor, PIECE)
        assert not path.exists()
    path.chmod(0o644)
    with whole_file(path, replaces=True) as descriptor:
        write_all(descriptor, b"after")
        assert path.read_bytes() == PIECE
    assert (path.read_bytes(), mode(path), list(tmp_path.iterdir())) == (b"after", 0o600, [path])


@pytest.mark.usefixtures("filesystem")
def test_a_file_that_came_meanwhile_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "opened"
    with pytest.raises(FileExistsError), whole_file(path):
        path.write_bytes(b"before")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        written(path, b"after")
    written(path, b"after", replaces=True)
    assert (path.is_symlink(), path.read_bytes(), list(tmp_path.iterdir())) == (False, b"after", [path])


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("bad chunk")])
def test_whatever_ends_the_writing_leaves_what_was_there_before(tmp_path: Path, end: BaseException) -> None:
    path = tmp_path / "opened"
    with pytest.raises(type(end)):
        written(path, PIECE, end=end)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"before")
    with pytest.raises(type(end)):
        written(path, PIECE, replaces=True, end=end)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("replaces", [True, False])
def test_a_name_that_can_not_be_taken_leaves_nothing_beside_it(tmp_path: Path, *, replaces: bool) -> None:
    (tmp_path / "opened").mkdir()
    with pytest.raises(OSError, match=r"exists|directory"):
        written(tmp_path / "opened", PIECE, replaces=replaces)
    assert [path.name for path in tmp_path.iterdir()] == ["opened"]


@pytest.mark.parametrize("moment", ["os.write", "os.fsync", "os.link"])
def test_a_kill_before_a_file_of_pieces_has_its_name_leaves_nothing(tmp_path: Path, moment: str) -> None:
    script = f"""
import os
from pathlib import Path
from kkp.data_dir import whole_file, write_all

{moment} = lambda *_, **__: os.kill(os.getpid(), {signal.SIGKILL:d})
with whole_file(Path("opened"), replaces=True) as descriptor:
    write_all(descriptor, b"content")
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)  # noqa: S603  our own
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


# Reading secrets.


@pytest.mark.parametrize("permissions", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666, 0o777])
def test_a_secret_that_others_can_touch_is_refused_with_the_cure(tmp_path: Path, permissions: int) -> None:
    path = key_file(tmp_path / "root.key", SECRET.encode(), permissions)
    with pytest.raises(ConfigError) as refusal:
        read_secret(path, "NAME")
    assert f"chmod 600 {path}" in str(refusal.value)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("permissions", [0o600, 0o400])
def test_a_secret_for_its_owner_only_is_read(tmp_path: Path, permissions: int) -> None:
    path = key_file(tmp_path / "root.key", SECRET.encode() + b"\n", permissions)
    assert read_secret(path, "NAME") == SECRET


ROOT, OURS, ANOTHER = 0, 65532, 1000
NOBODY_ELSE = {0o600, 0o400, 0o200, 0o000}


@pytest.mark.parametrize(
    ("owner", "runs_as", "taken"),
    [
        (OURS, OURS, NOBODY_ELSE),
        (ROOT, ROOT, NOBODY_ELSE),
        (ANOTHER, OURS, NOBODY_ELSE),
        (ROOT, OURS, NOBODY_ELSE | {mode | 0o040 for mode in NOBODY_ELSE}),
    ],
    ids=["its own", "root's, to root", "another account's", "root's, to somebody else"],
)
def test_a_secret_is_its_owners_alone_but_root_may_hand_it_to_a_group(
    owner: int, runs_as: int, taken: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: runs_as)
    modes = [mode for mode in range(0o1000) if not mode & 0o100]
    assert {mode for mode in modes if not is_exposed(status_of(mode, owner))} == taken


@pytest.fixture
def handed_over() -> Iterator[Path]:
    """A directory that anybody can enter, in a process that is not root until the test is over."""
    if os.geteuid() != ROOT:
        pytest.skip("only root can hand a file to another account")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_ours() -> Iterator[None]:
    os.setegid(OURS)
    os.seteuid(OURS)
    try:
        yield
    finally:
        os.seteuid(ROOT)
        os.setegid(ROOT)


@pytest.mark.parametrize(
    ("group", "permissions", "refusal"),
    [
        (OURS, 0o440, None),
        (OURS, 0o640, None),
        (OURS, 0o660, "chmod 600"),
        (OURS, 0o444, "chmod 600"),
        (ANOTHER, 0o440, "can't be read"),
        (ANOTHER, 0o444, "chmod 600"),
    ],
)
def test_a_secret_of_roots_is_read_by_the_group_that_it_is_for(
    handed_over: Path, group: int, permissions: int, refusal: str | None
) -> None:
    path = key_file(handed_over / "master.key", SECRET.encode(), permissions)
    os.chown(path, ROOT, group)
    (handed_over / "..data").symlink_to(handed_over)  # Kubernetes has the names lead there
    with as_ours():
        if refusal is None:
            assert read_secret(handed_over / "..data/master.key", "NAME") == SECRET
        else:
            with pytest.raises(ConfigError, match=refusal):
                read_secret(path, "NAME")


@pytest.mark.parametrize(
    ("permissions", "refused"), [(0o440, False), (0o640, False), (0o660, True), (0o444, True)]
)
def test_a_tls_key_of_roots_is_taken_by_the_same_rule(
    handed_over: Path,
    permissions: int,
    refused: bool,  # noqa: FBT001  a column of the table
) -> None:
    new_pair().write(handed_over)
    (handed_over / "tls.crt").chmod(0o644)
    (handed_over / "tls.key").chmod(permissions)
    os.chown(handed_over / "tls.key", ROOT, OURS)
    with as_ours():
        problems = check_tls(handed_over / "tls.crt", handed_over / "tls.key")
    assert [("chmod 600" in problem) for problem in problems] == [True] * refused


def status_of(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, OURS, 44, 0, 0, 0))


def test_a_link_to_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_file(tmp_path / "open.key", SECRET.encode(), 0o644)
    (tmp_path / "root.key").symlink_to(tmp_path / "open.key")
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(tmp_path / "root.key", "NAME")


def test_what_can_not_be_read_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir(0o700)
    key_file(tmp_path / "binary", b"secret\xff\xfe")
    for name in ("missing", "directory", "binary"):
        with pytest.raises(ConfigError, match=r"\AKKP_MASTER_KEY_FILE: .* can't be read") as refusal:
            read_secret(tmp_path / name, "KKP_MASTER_KEY_FILE")
        assert "secret" not in str(refusal.value)


# The database's file.


def test_a_new_database_and_what_sqlite_lays_beside_it_are_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "kkp.db"
    prepare_database(path)
    assert path.read_bytes() == b""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (c)")
        assert {file.name: mode(file) for file in tmp_path.iterdir()} == {
            "kkp.db": 0o600, "kkp.db-wal": 0o600, "kkp.db-shm": 0o600,
        }  # fmt: skip
        prepare_database(path)


@pytest.mark.parametrize("permissions", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666, 0o777])
@pytest.mark.parametrize("name", ["kkp.db", "kkp.db-wal", "kkp.db-shm", "kkp.db-journal"])
def test_a_database_that_others_can_touch_is_refused_with_the_cure(
    tmp_path: Path, name: str, permissions: int
) -> None:
    path = key_file(tmp_path / "kkp.db", b"data")
    spoilt = key_file(tmp_path / name, b"data", permissions)
    with pytest.raises(ConfigError, match=r"\AKKP_DATABASE_URL: ") as refusal:
        prepare_database(path)
    (problem,) = refusal.value.problems
    assert problem.endswith(f"run: chmod 600 {spoilt}")
    assert (spoilt.read_bytes(), mode(spoilt)) == (b"data", permissions)


def test_every_file_of_a_database_that_others_can_touch_is_named_at_once(tmp_path: Path) -> None:
    path = key_file(tmp_path / "kkp.db", b"", 0o644)
    key_file(tmp_path / "kkp.db-wal", b"", 0o644)
    with pytest.raises(ConfigError) as refusal:
        prepare_database(path)
    assert len(refusal.value.problems) == 2


@pytest.mark.parametrize("permissions", [0o600, 0o400])
def test_a_database_for_its_owner_only_is_taken_as_it_is(tmp_path: Path, permissions: int) -> None:
    path = key_file(tmp_path / "kkp.db", b"data", permissions)
    prepare_database(path)
    assert (path.read_bytes(), mode(path)) == (b"data", permissions)


def test_a_link_to_a_database_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_file(tmp_path / "open.db", b"", 0o644)
    (tmp_path / "kkp.db").symlink_to(tmp_path / "open.db")
    with pytest.raises(ConfigError, match="chmod 600"):
        prepare_database(tmp_path / "kkp.db")


def test_beside_a_linked_database_the_files_at_its_true_place_are_checked(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    key_file(tmp_path / "elsewhere" / "real.db", b"")
    spoilt = key_file(tmp_path / "elsewhere" / "real.db-wal", b"", 0o644)
    (tmp_path / "kkp.db").symlink_to(tmp_path / "elsewhere" / "real.db")
    with pytest.raises(ConfigError, match="chmod 600") as refusal:
        prepare_database(tmp_path / "kkp.db")
    assert str(spoilt) in str(refusal.value)


def test_a_database_is_not_made_through_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "kkp.db").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="can't be opened"):
        prepare_database(tmp_path / "kkp.db")
    assert not (tmp_path / "target").exists()


def test_where_no_database_file_can_be_the_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir(0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("directory", "pipe", "missing/kkp.db", "n" * 300):
        with pytest.raises(ConfigError, match=r"\AKKP_DATABASE_URL: "):
            prepare_database(tmp_path / name)
    assert not (tmp_path / "missing").exists()


# The master key.


def test_the_first_start_makes_a_key_and_later_ones_read_it(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    key = master_key(path, may_create=True)
    assert len(key) == 32
    assert mode(path) == 0o600
    assert path.read_bytes() == base64.urlsafe_b64encode(key) + b"\n"
    assert master_key(path, may_create=True) == key
    assert master_key(path, may_create=False) == key


def test_every_new_key_is_another(tmp_path: Path) -> None:
    assert len({master_key(tmp_path / str(number), may_create=True) for number in range(100)}) == 100


def test_where_none_may_be_made_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\AKKP_MASTER_KEY_FILE: .* can't be read \(FileNotFoundError\)\Z"):
        master_key(tmp_path / "master.key", may_create=False)
    assert not (tmp_path / "master.key").exists()


GOOD = base64.urlsafe_b64encode(bytes(range(224, 256)))


@pytest.mark.parametrize("content", [GOOD + b"\n", GOOD, GOOD.rstrip(b"="), GOOD.rstrip(b"=") + b"\n"])
def test_a_key_is_read_with_and_without_padding_and_newline(tmp_path: Path, content: bytes) -> None:
    path = key_file(tmp_path / "master.key", content)
    assert master_key(path, may_create=False) == bytes(range(224, 256))


WRONG_KEYS = {
    "empty": b"",
    "only a newline": b"\n",
    "cut short": GOOD[:-2],
    "cut in half": GOOD[:22],
    "31 bytes": base64.urlsafe_b64encode(bytes(31)),
    "33 bytes": base64.urlsafe_b64encode(bytes(33)),
    "hex": bytes(32).hex().encode(),
    "the raw bytes": b"k" * 32,
    "two keys": GOOD + b"\n" + GOOD,
    "words": b"correct horse battery staple correct horse",
    "a null byte": GOOD[:20] + b"\0" + GOOD[21:],
}


@pytest.mark.parametrize("content", WRONG_KEYS.values(), ids=WRONG_KEYS.keys())
@pytest.mark.parametrize("may_create", [True, False])
def test_a_file_that_holds_no_key_is_refused_and_kept(
    tmp_path: Path,
    content: bytes,
    may_create: bool,  # noqa: FBT001  a parameter of the table
) -> None:
    path = key_file(tmp_path / "master.key", content)
    with pytest.raises(ConfigError, match=r"32 bytes in base64url\Z") as refusal:
        master_key(path, may_create=may_create)
    shown = str(refusal.value)
    assert not content.strip() or content.decode() not in shown
    assert path.read_bytes() == content


def test_a_key_that_others_can_read_is_refused_even_if_one_may_be_made(tmp_path: Path) -> None:
    path = key_file(tmp_path / "master.key", GOOD, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        master_key(path, may_create=True)
    assert path.read_bytes() == GOOD


@pytest.mark.parametrize("text", [GOOD.decode() + "===", " " + GOOD.decode() + " ", GOOD.decode() + "\r\n"])
def test_white_space_and_padding_around_a_key_are_forgiven(text: str) -> None:
    assert decode_master_key(text) == bytes(range(224, 256))
