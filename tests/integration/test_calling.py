"""`kkp token mint`, `kkp encrypt` and `kkp decrypt` beside a real `kkp dev`.

One server serves the whole file. The commands run in this process, in a thread, and as processes of their own
where they are given something, are ended, or write where it can't be written.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import pty
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from kkp import cli
from kkp.cli.callers import CODES
from kkp.tokens import read_unverified
from tests import streams
from tests.approving import policy_with, released
from tests.harness import grant
from tests.integration.process import KKP, NO_SETTINGS, Finished, Server, environment, serving
from tests.integration.test_audit_faults import mounted, needs_mount

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1_048_576
KEY = ("--backend", "aws", "--key-id", "alias/orders")
GRANT = grant(policy_claims={"environment": ["prod"]})
_HANG_SECONDS = 60


# What a command sets up for its own process, and this one has set up otherwise.
OF_A_PROCESS = ((os, "umask"), (resource, "setrlimit"), (logging, "basicConfig"), (signal, "signal"))


def _ended(arguments: Sequence[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


class Piped(NamedTuple):
    """How a command ended that was given something, and what it wrote."""

    code: int
    out: bytes
    err: str


@dataclass(slots=True)
class Caller:
    """Somebody who has a service key in a file, and a directory of their own."""

    here: Path
    settings: Mapping[str, str]
    key: str
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    async def run(self, *arguments: str, environ: Mapping[str, str] = NO_SETTINGS) -> Finished:
        """Run a command; what is set to nothing is not set."""
        given = {**self.settings, **environ}
        self.capfd.readouterr()
        with self.monkeypatch.context() as patches:
            patches.chdir(self.here)
            patches.setattr(
                os, "environ", environment({name: value for name, value in given.items() if value})
            )
            for module, name in OF_A_PROCESS:
                patches.setattr(module, name, lambda *_, **__: None)
            code = await asyncio.to_thread(_ended, arguments)
        finished = Finished(code, *self.capfd.readouterr())
        assert "Traceback" not in finished.err
        assert self.key not in finished.out + finished.err
        return finished

    async def does(self, *arguments: str, environ: Mapping[str, str] = NO_SETTINGS) -> Finished:
        """Run a command that succeeds, and says nothing beside."""
        finished = await self.run(*arguments, environ=environ)
        assert (finished.code, finished.err) == (0, "")
        return finished

    async def fails(
        self, code: int, told: str, *arguments: str, environ: Mapping[str, str] = NO_SETTINGS
    ) -> Finished:
        """Run a command that fails, leaves every file as it was, and prints nothing."""
        before = self.files()
        finished = await self.run(*arguments, environ=environ)
        assert (finished.code, finished.out) == (code, ""), finished
        assert told in finished.err
        assert f" {code} " in CODES
        assert self.files() == before
        return finished

    async def start(self, *arguments: str, **streams: Any) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            KKP, *arguments, cwd=self.here, env=environment(self.settings), **streams
        )

    async def piped(self, given: bytes, *arguments: str) -> Piped:
        """Run a command with this on standard input."""
        pipe = asyncio.subprocess.PIPE
        process = await self.start(*arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(_HANG_SECONDS):
            out, err = await process.communicate(given)
        assert self.key.encode() not in out + err
        return Piped(process.returncode or 0, out, err.decode())

    def write(self, name: str, content: bytes) -> str:
        """Write a file, and return its name."""
        (self.here / name).write_bytes(content)
        return name

    def read(self, name: str) -> bytes:
        """Return what is in a file."""
        return (self.here / name).read_bytes()

    def files(self) -> dict[str, bytes]:
        """Return what lies here."""
        return {path.name: path.read_bytes() for path in self.here.iterdir() if path.is_file()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(tmp_path_factory.mktemp("kkp")) as running:
        document = {"id": "orders", "roles": ["service"], "grants": [GRANT], "attributes": {}}
        added = await running.post("/identities", document, credential=running.root_key)
        key_file = running.directory / "orders.key"
        key_file.touch(0o600)
        key_file.write_text(f"{added.json['service_key']}\n")
        yield running


@pytest.fixture
def caller(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Caller:
    key_file = server.directory / "orders.key"
    settings = {
        "KKP_URL": server.url,
        "KKP_SERVICE_KEY_FILE": str(key_file),
        "KKP_AUDIENCE": "orders-db",
    }
    (tmp_path / "here").mkdir()
    return Caller(tmp_path / "here", settings, key_file.read_text().strip(), monkeypatch, capfd)


async def sealed_elsewhere(server: Server, plaintext: bytes, *, chunk_size: int = MIB) -> bytes:
    """Seal a stream, as any client does."""
    document = {"backend": "aws", "key_id": "alias/orders", "chunk_size": chunk_size}
    begun = (await server.post("/envelope/data-key", document, credential=server.root_key)).json
    return streams.written(begun["envelope"], base64.b64decode(begun["message_key_b64"]), plaintext)


async def message_key(server: Server, raw: bytes) -> bytes:
    """Have KKP release a stream's message key, as any client does."""
    line = json.loads(raw.partition(b"\n")[0])
    document = {"envelope": line, "token": await server.token()}
    released = await server.post("/envelope/data-key/unwrap", document, credential=server.root_key)
    assert released.status == 200, released.raw
    return base64.b64decode(released.json["message_key_b64"])


# There and back.


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
async def test_a_file_of_any_size_comes_back_to_the_byte(caller: Caller, size: int) -> None:
    plaintext = os.urandom(size)
    caller.write("backup", plaintext)
    assert (await caller.does("encrypt", "backup", *KEY)).out == ""
    assert (await caller.does("decrypt", "backup.kkp", "-o", "again")).out == ""
    assert sorted(caller.files()) == ["again", "backup", "backup.kkp"]
    assert caller.read("again") == plaintext
    for name in ("again", "backup.kkp"):
        assert stat.S_IMODE((caller.here / name).stat().st_mode) == 0o600


async def test_what_is_sealed_is_a_stream_that_anybody_reads_by_the_page(
    caller: Caller, server: Server
) -> None:
    plaintext = os.urandom(MIB + 5)
    caller.write("backup", plaintext)
    labels = ("--context", "table=orders", "--context", "a==b=", "--associated-data", "backup 7")
    await caller.does("encrypt", "backup", *KEY, *labels)
    sealed = caller.read("backup.kkp")
    line = json.loads(sealed.partition(b"\n")[0])
    assert (line["context"], line["associated_data"]) == ({"table": "orders", "a": "=b="}, "backup 7")
    assert line["chunk_size"] == MIB
    assert b"".join(streams.read(sealed, await message_key(server, sealed))) == plaintext


async def test_a_stream_that_somebody_else_wrote_is_opened(caller: Caller, server: Server) -> None:
    plaintext = os.urandom(10_000)
    caller.write("sealed.kkp", await sealed_elsewhere(server, plaintext, chunk_size=4096))
    await caller.does("decrypt", "sealed.kkp")
    assert caller.read("sealed") == plaintext


@pytest.mark.parametrize("size", [0, 2 * MIB + 7])
async def test_both_work_in_a_pipe(caller: Caller, size: int) -> None:
    plaintext = os.urandom(size)
    sealed = await caller.piped(plaintext, "encrypt", "-", *KEY)
    assert (sealed.code, sealed.err) == (0, "")
    assert await caller.piped(sealed.out, "decrypt", "-") == (0, plaintext, "")
    caller.write("sealed.kkp", sealed.out)
    assert await caller.piped(b"", "decrypt", "sealed.kkp", "-o", "-") == (0, plaintext, "")
    assert await caller.piped(plaintext, "encrypt", "-", *KEY, "-o", "named") == (0, b"", "")
    assert sorted(caller.files()) == ["named", "sealed.kkp"]


# Files that are there, and what is none.


async def test_nothing_is_overwritten_unless_that_is_said(caller: Caller, server: Server) -> None:
    caller.write("backup", b"plaintext")
    await caller.does("encrypt", "backup", *KEY)
    before = await records_of(server)
    await caller.fails(2, "backup.kkp: it is there; --force overwrites it", "encrypt", "backup", *KEY)
    await caller.fails(2, "backup: it is there", "decrypt", "backup.kkp")
    assert await records_of(server) == before  # nobody was asked
    caller.write("backup", b"another")
    await caller.does("encrypt", "backup", *KEY, "--force")
    await caller.does("decrypt", "backup.kkp", "--force")
    assert caller.read("backup") == b"another"


async def test_the_file_that_is_read_is_never_overwritten(caller: Caller) -> None:
    caller.write("backup", b"plaintext")
    (caller.here / "link").symlink_to("backup")
    (caller.here / "same").hardlink_to(caller.here / "backup")
    for source, target in (("backup", "backup"), ("link", "backup"), ("same", "./backup")):
        for command in (("encrypt", source, *KEY), ("decrypt", source)):
            for forced in ([], ["--force"]):
                await caller.fails(2, "backup: it is the file that is read", *command, "-o", target, *forced)
    with (caller.here / "backup").open("rb") as given:
        process = await caller.start("encrypt", "-", *KEY, "-o", "backup", "--force", stdin=given, stderr=-1)
        _, err = await process.communicate()
    assert (process.returncode, err) == (2, b"kkp: backup: it is the file that is read; write another one\n")
    assert caller.read("backup") == b"plaintext"


async def records_of(server: Server) -> int:
    """Count what is on record about message keys."""
    answer = await server.get("/audit?limit=1000", credential=server.root_key)
    actions = [json.loads(each["body"])["action"] if "body" in each else each.get("action")
               for each in answer.json["records"]]  # fmt: skip
    return sum(action in {"generate_data_key", "release_data_key"} for action in actions)


async def test_what_is_no_file_is_never_replaced(caller: Caller) -> None:
    caller.write("backup", b"plaintext")
    (caller.here / "directory").mkdir()
    (caller.here / "link").symlink_to("backup")
    os.mkfifo(caller.here / "pipe")
    for name in ("/dev/null", "directory", "link", "pipe"):
        for forced in ([], ["--force"]):
            finished = await caller.run("encrypt", "backup", *KEY, "-o", name, *forced)
            assert (finished.code, finished.err) == (2, f"kkp: {name}: it is there, and is no file\n")
    assert Path("/dev/null").is_char_device()  # noqa: ASYNC240  it does not wait
    assert caller.read("backup") == b"plaintext"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("encrypt", "missing", *KEY), "missing: it can't be read (No such file or directory)"),
        (("encrypt", ".", *KEY, "-o", "out"), "it can't be read (Is a directory)"),
        (("decrypt", "backup"), "does not end in .kkp; name the file to write with -o"),
        (("encrypt", "backup", *KEY, "--context", "table"), "table: give NAME=VALUE"),
        (("encrypt", "backup", *KEY, "--context", "a=1", "--context", "a=2"), "a name is given twice"),
        (("encrypt", "backup", "--backend", "aws"), "required: --key-id"),
        (("encrypt", "backup", *KEY, "--service-key", "kkp_sk_x"), "unrecognized arguments"),
        (("token", "mint", *KEY, "--audience", "x", "--op", "sign"), "invalid choice"),
        (("token", "mint", *KEY, "--audience", "x", "--ttl", "soon"), "give a time such as"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
async def test_what_can_not_be_used_is_said(caller: Caller, arguments: tuple[str, ...], told: str) -> None:
    caller.write("backup", b"plaintext")
    await caller.fails(2, told, *arguments)


async def test_nothing_is_written_to_a_terminal(caller: Caller) -> None:
    caller.write("backup", b"plaintext")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as terminal:
        process = await caller.start("encrypt", "backup", *KEY, "-o", "-", stdout=terminal, stderr=-1)
        _, err = await process.communicate()
    assert (process.returncode, b"standard output is a terminal" in err) == (2, True)


# Damage.


@pytest_asyncio.fixture(loop_scope="module")
async def sealed(caller: Caller, server: Server) -> bytes:
    """A stream of two and a half chunks, made of `backup`."""
    caller.write("backup", os.urandom(2 * MIB + MIB // 2))
    return await sealed_elsewhere(server, caller.read("backup"))


def damaged(sealed: bytes) -> dict[str, bytes]:
    """Return what is not to open, by what is wrong with it."""
    begins = sealed.index(b"\n") + 1
    line, first, rest = sealed[:begins], sealed[begins:][: MIB + 16], sealed[begins + MIB + 16 :]
    flips = {
        f"a bit flipped at {at}": sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        for at in (sealed.index(b'"commitment": "') + 20, begins, begins + MIB + 16, len(sealed) - 1)
    }
    return {
        **flips,
        "nothing": b"",
        "the line alone": line,
        "a cut within the line": sealed[:100],
        "a cut within the first chunk": sealed[: begins + 100],
        "a cut between two chunks": line + first,
        "the last byte cut off": sealed[:-1],
        "a byte more": sealed + b"\0",
        "chunks in another order": line + rest[: MIB + 16] + first + rest[MIB + 16 :],
        "a chunk left out": line + rest,
        "another line's context": sealed.replace(b'"context": {}', b'"context": {"a":"b"}'),
        "another chunk size": sealed.replace(b'"chunk_size": 1048576', b'"chunk_size": 1048577'),
        "an envelope and no stream": b'{"v": 1}\n',
        "no JSON": os.urandom(300_000),
    }


async def test_a_damaged_stream_leaves_no_file_and_the_old_one_as_it_was(
    caller: Caller, sealed: bytes
) -> None:
    for name, raw in damaged(sealed).items():
        assert raw != sealed, name
        caller.write("broken.kkp", raw)
        await caller.fails(1, "envelope_invalid", "decrypt", "broken.kkp", "-o", "backup", "--force")
    await caller.fails(1, "envelope_invalid", "decrypt", "broken.kkp")


async def test_what_is_no_stream_is_said_to_be_none(caller: Caller, server: Server) -> None:
    document = {"backend": "aws", "key_id": "alias/orders", "plaintext": "x" * 100_000}
    answer = (await server.post("/envelope/encrypt", document, credential=server.root_key)).json
    whole = "this is a whole envelope: "
    cases = [
        (json.dumps(answer["envelope"]), whole),
        (json.dumps(answer["envelope"], indent=2) + "\n", whole),
        (json.dumps(answer), whole),
        (json.dumps(answer["envelope"] | {"v": 2}), "this is not a stream of KKP's"),
        ("[]", "this is not a stream of KKP's"),
        ('{"envelope": []}', "this is not a stream of KKP's"),
        ("", "this is not a stream of KKP's"),
        ("some text\n" * 100_000, "this is not a stream of KKP's"),
    ]
    before = await records_of(server)
    for content, told in cases:
        caller.write("sealed.kkp", content.encode())
        for output in ([], ["-o", "-"]):
            failed = await caller.fails(1, f"kkp: envelope_invalid: {told}", "decrypt", "sealed.kkp", *output)
            assert "a beginning" not in failed.err
    piped = await caller.piped(json.dumps(answer).encode(), "decrypt", "-")
    assert (piped.code, piped.out, whole in piped.err) == (1, b"", True)
    assert await records_of(server) == before  # nobody was asked


async def test_of_a_cut_stream_a_pipe_gets_a_beginning_and_is_told_so(caller: Caller, sealed: bytes) -> None:
    given = await caller.piped(sealed[:-1], "decrypt", "-")
    assert (given.code, given.out) == (1, caller.read("backup")[: 2 * MIB])
    assert "is a beginning at best, and not to be used" in given.err


# Ends.


@needs_mount
async def test_a_full_disk_leaves_no_file(caller: Caller) -> None:
    caller.write("backup", os.urandom(2 * MIB))
    disk = caller.here / "disk"
    disk.mkdir()
    with mounted(disk, "1m"):
        for forced in ([], ["--force"]):
            finished = await caller.run("encrypt", "backup", *KEY, "-o", "disk/sealed", *forced)
            assert (finished.code, list(disk.iterdir())) == (7, [])
            told = "kkp: disk/sealed: the output could not be written (No space left on device)"
            assert told in finished.err


async def test_an_output_that_has_no_place_is_named(caller: Caller) -> None:
    caller.write("backup", b"plaintext")
    told = "kkp: nowhere/out: the output could not be written (No such file or directory)\n"
    failed = await caller.fails(7, told, "encrypt", "backup", *KEY, "-o", "nowhere/out")
    assert failed.err == told


async def test_an_output_that_takes_nothing_more_is_said(caller: Caller) -> None:
    caller.write("backup", os.urandom(2 * MIB))
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123  a device, which does not wait
        process = await caller.start("encrypt", "backup", *KEY, "-o", "-", stdout=full, stderr=-1)
        _, err = await process.communicate()
    assert (process.returncode, err) == (
        7, b"kkp: standard output: the output could not be written (No space left on device)\n",
    )  # fmt: skip


async def test_a_reader_that_goes_away_ends_it_without_a_word(caller: Caller) -> None:
    caller.write("backup", os.urandom(4 * MIB))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        process = await caller.start("encrypt", "backup", *KEY, "-o", "-", stdout=pipe, stderr=-1)
        _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")


ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 130, signal.SIGKILL: -9}


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
async def test_whoever_ends_it_finds_what_was_there_before(caller: Caller, number: signal.Signals) -> None:
    caller.write("old", b"as it was")
    process = await caller.start("encrypt", "-", *KEY, "-o", "old", "--force", stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin is not None
    process.stdin.write(os.urandom(3 * MIB))
    await process.stdin.drain()  # so it has taken more than a pipe holds, and waits for the rest
    await asyncio.sleep(0.1)
    process.send_signal(number)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (ENDINGS[number], b"", b"")
    assert caller.files() == {"old": b"as it was"}


# Tokens.


async def test_a_token_is_printed_and_nothing_else(caller: Caller, server: Server) -> None:
    minted = await caller.does(
        "token", "mint", *KEY, "--audience", "orders-db", "--op", "encrypt", "--op", "decrypt",
        "--ttl", "2m", "--claim", "environment=prod", "--context", "table=orders",
    )  # fmt: skip
    token = minted.out.removesuffix("\n")
    assert minted.out == f"{token}\n"
    claims = await server.verify_offline(token)
    assert (claims["aud"], claims["sub"], "act" in claims) == ("orders-db", "orders", False)
    assert (sorted(claims["ops"]), claims["exp"] - claims["iat"]) == (["decrypt", "encrypt"], 120)
    assert (claims["policy_claims"], claims["context"]) == ({"environment": "prod"}, {"table": "orders"})


async def test_a_token_decrypts_by_default_and_can_be_inspected(caller: Caller, server: Server) -> None:
    minted = await caller.does("token", "mint", *KEY, "--audience", "orders-db")
    assert list(read_unverified(minted.out.strip())[1].ops) == ["decrypt"]
    jwks = json.dumps((await server.get("/keys/jwks")).json)
    inspected = await caller.piped(f"{minted.out}{jwks}".encode(), "token", "inspect", "--jwks", "-")
    assert (inspected.code, inspected.out.startswith(b"verified with the key ")) == (0, True)


async def test_a_token_for_somebody_else_takes_a_grant_to_delegate(caller: Caller) -> None:
    mint = ("token", "mint", *KEY, "--audience", "orders-db", "--subject", "somebody")
    refused = await caller.fails(4, "kkp: policy_denied: ", *mint)
    assert "kkp: policy_denied: KKP refused (reasons tokens." in refused.err
    assert "decision " in refused.err
    assert [refused.err.count(said) for said in ("policy_denied", "request ", "tokens.")] == [1, 1, 1]


@pytest.mark.parametrize("ttl", ["0", "301s", "1h"])
async def test_a_life_that_no_token_has_is_answered_with_what_one_looks_like(
    caller: Caller, ttl: str
) -> None:
    mint = ("token", "mint", *KEY, "--audience", "orders-db", "--ttl", ttl)
    refused = await caller.fails(2, "kkp: invalid_request: KKP refused (", *mint)
    assert f"--ttl {ttl}: give a time such as 90s or 5m, from 1s to KKP's KKP_TOKEN_TTL_SECS" in refused.err
    await caller.does(*mint[:-1], "300s")


async def test_of_a_life_that_was_not_asked_for_nothing_is_said(caller: Caller) -> None:
    mint = ("token", "mint", *KEY, "--audience", "orders-db", "--context", "=")
    assert "--ttl" not in (await caller.fails(2, "kkp: invalid_request: ", *mint)).err


# Credentials, and where KKP is.

COMMANDS = {
    "token mint": ("token", "mint", *KEY, "--audience", "orders-db"),
    "encrypt": ("encrypt", "backup", *KEY),
    "decrypt": ("decrypt", "sealed.kkp"),
}


@pytest_asyncio.fixture(loop_scope="module", params=COMMANDS)
async def command(request: pytest.FixtureRequest, caller: Caller, server: Server) -> tuple[str, ...]:
    """Each of the three, with what it needs."""
    caller.write("backup", b"plaintext")
    caller.write("sealed.kkp", await sealed_elsewhere(server, b"plaintext"))
    return COMMANDS[request.param]


async def test_the_key_may_stand_in_the_environment(caller: Caller, command: tuple[str, ...]) -> None:
    await caller.does(*command, environ={"KKP_SERVICE_KEY_FILE": "", "KKP_SERVICE_KEY": caller.key})


async def test_exactly_one_credential_is_taken(caller: Caller, command: tuple[str, ...]) -> None:
    told = "set KKP_SERVICE_KEY_FILE"
    await caller.fails(2, told, *command, environ={"KKP_SERVICE_KEY_FILE": ""})
    both = "kkp: KKP_SERVICE_KEY and KKP_SERVICE_KEY_FILE are both set: unset one\n"
    await caller.fails(2, both, *command, environ={"KKP_SERVICE_KEY": caller.key})


async def test_a_key_that_others_can_read_is_not_used(caller: Caller, command: tuple[str, ...]) -> None:
    caller.write("open.key", caller.key.encode())
    (caller.here / "open.key").chmod(0o644)
    for name, told in (("open.key", "others can read or write"), ("missing.key", "can't be read")):
        await caller.fails(2, told, *command, environ={"KKP_SERVICE_KEY_FILE": name})


async def test_a_key_that_kkp_does_not_know_is_refused(caller: Caller, command: tuple[str, ...]) -> None:
    for key, code in (("kkp_sk_" + "A" * 43, "unauthenticated"), ("nonsense", "token_invalid")):
        environ = {"KKP_SERVICE_KEY_FILE": "", "KKP_SERVICE_KEY": key}
        finished = await caller.fails(4, f"kkp: {code}: ", *command, environ=environ)
        assert key not in finished.err


async def test_a_key_that_no_header_can_hold_is_not_sent(caller: Caller, command: tuple[str, ...]) -> None:
    environ = {"KKP_SERVICE_KEY_FILE": "", "KKP_SERVICE_KEY": "a\nb"}
    told = "kkp: invalid_configuration: The credential has white space or a line break in it: strip it."
    await caller.fails(2, told, *command, environ=environ)


async def test_kkp_is_where_the_option_or_the_environment_says(
    caller: Caller, command: tuple[str, ...]
) -> None:
    url = caller.settings["KKP_URL"]
    await caller.fails(2, "where is KKP? Give --url, or set KKP_URL", *command, environ={"KKP_URL": ""})
    await caller.fails(2, "invalid_configuration", *command, "--url", "http://kkp.example")
    await caller.fails(2, "invalid_configuration", *command, "--url", "ftp://127.0.0.1")
    await caller.does(*command, "--url", url, environ={"KKP_URL": "http://127.0.0.1:1"})


@pytest.mark.parametrize("name", ["token mint", "decrypt"])
async def test_a_token_is_for_the_audience_of_the_option_or_the_environment(
    caller: Caller, name: str
) -> None:
    caller.write("backup", b"plaintext")
    await caller.does("encrypt", "backup", *KEY, "-o", "sealed.kkp", environ={"KKP_AUDIENCE": ""})
    command = [part for part in COMMANDS[name] if part not in {"--audience", "orders-db"}]
    await caller.fails(2, "Give --audience, or set KKP_AUDIENCE", *command, environ={"KKP_AUDIENCE": ""})
    await caller.fails(4, "kkp: policy_denied: ", *command, "--audience", "another")
    await caller.does(*command, "--audience", "orders-db", environ={"KKP_AUDIENCE": "another"})


async def test_a_kkp_that_is_away_is_told_from_one_that_refuses(
    caller: Caller, command: tuple[str, ...]
) -> None:
    await caller.fails(3, "kkp: unreachable: ", *command, "--url", f"http://127.0.0.1:{closed_port()}")
    with somebody_else() as url:
        await caller.fails(3, "kkp: bad_answer: ", *command, "--url", url)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def somebody_else() -> Iterator[str]:
    """Run what is no KKP, and answers whatever it is asked."""
    program = (
        "from http.server import *\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_POST(self): self.send_response(200); self.send_header('Content-Length', '2'); "
        "self.end_headers(); self.wfile.write(b'{}')\n"
        "    def log_message(self, *_): pass\n"
        "server = HTTPServer(('127.0.0.1', 0), Handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  our own
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def test_authorities_that_are_none_are_refused(caller: Caller, command: tuple[str, ...]) -> None:
    caller.write("authorities.pem", b"nonsense")
    await caller.fails(2, "KKP_CA_FILE: authorities.pem", *command, "--ca-file", "authorities.pem")
    await caller.fails(2, "KKP_CA_FILE: missing.pem", *command, environ={"KKP_CA_FILE": "missing.pem"})


@pytest.mark.parametrize(
    ("actions", "command"),
    [
        (["issue_token"], ("token", "mint", *KEY)),
        (["generate_data_key"], ("encrypt", "backup", *KEY)),
        (["release_data_key"], ("decrypt", "sealed.kkp")),
    ],
    ids=["mint", "encrypt", "decrypt"],
)
async def test_what_somebody_else_approved_is_done_once(
    caller: Caller, tmp_path: Path, actions: Sequence[str], command: Sequence[str]
) -> None:
    policy = policy_with(tmp_path, [{"actions": actions, "valid_minutes": 10}])
    async with serving(tmp_path, environ={"KKP_POLICY_PATH": str(policy)}) as server:
        alice = {"id": "alice", "roles": ["approver"], "grants": [], "attributes": {}}
        approver = (await server.post("/identities", alice, credential=server.root_key)).json["service_key"]
        environ = {"KKP_URL": server.url, "KKP_SERVICE_KEY_FILE": str(server.data_dir / "root.key")}
        caller.write("backup", b"plaintext")
        if command[0] == "decrypt":
            caller.write("sealed.kkp", await sealed_elsewhere(server, b"plaintext"))
        told = "kkp: approval_required: KKP refused (approval "
        refused = await caller.fails(4, told, *command, environ=environ)
        approval_id = refused.err.partition("(approval ")[2].partition(";")[0]
        release = await released(server, approval_id, approver)
        done = await caller.does(*command, "--approval", release, environ=environ)
        assert done.out or caller.read("backup.kkp" if command[0] == "encrypt" else "sealed")
        again = (*command, "-o", "again") if command[0] != "token" else command
        await caller.fails(4, "kkp: approval_invalid", *again, "--approval", release, environ=environ)


async def test_what_can_be_no_approval_is_not_sent(caller: Caller) -> None:
    caller.write("backup", b"plaintext")
    await caller.fails(
        2, "The approval has white space", "encrypt", "backup", *KEY, "--approval", "two words"
    )


@pytest.mark.parametrize("verb", ["encrypt", "mint"])
async def test_what_policy_denies_and_what_does_not_exist_have_their_own_codes(
    caller: Caller, server: Server, verb: str
) -> None:
    caller.write("backup", b"plaintext")
    root = {"KKP_SERVICE_KEY_FILE": str(server.data_dir / "root.key")}
    begun = ("token", "mint", "--audience", "x") if verb == "mint" else ("encrypt", "backup")
    other = ("--backend", "aws", "--key-id", "alias/payments")
    refused = await caller.fails(4, "kkp: policy_denied: ", *begun, *other)
    assert "no_grant" in refused.err
    if verb == "encrypt":
        nowhere = ("--backend", "nowhere", "--key-id", "alias/orders")
        await caller.fails(5, "kkp: unknown_backend: ", *begun, *nowhere, environ=root)
        missing = ("--backend", "aws", "--key-id", "alias/missing")
        await caller.fails(5, "kkp: unknown_key: ", *begun, *missing, environ=root)
