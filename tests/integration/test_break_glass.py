"""`kkp envelope open --direct` as a real process: KKP seals, is gone with all that it had, and it opens.

Each cloud is its emulator, spoken to by the vendor's unchanged SDK.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import rfc8785

from kkp.audit.break_glass import Attempt, read_record_file
from kkp.cli import _parser, direct
from kkp.cli.envelope import ACKNOWLEDGEMENT
from tests import streams
from tests.emulators import aws, azure
from tests.emulators.clouds import CLOUDS, Cloud, aws_kms, vault_transit
from tests.harness import running
from tests.integration.process import (
    KKP,
    NO_SETTINGS,
    Finished,
    database,
    environment,
    kkp,
    names,
    records,
    serving,
)

PLAINTEXT = "canary-plaintext"
CONTEXT = {"table": "canary-value", "environment": "prod"}
MEANT = ("--reason", "the region is down", "--acknowledge", ACKNOWLEDGEMENT)
_HANG_SECONDS = 30


DENY: Mapping[str, Callable[[Any], object]] = {
    "aws-kms": lambda emulator: setattr(emulator, "fault", aws.refusing("AccessDeniedException")),
    "vault-transit": lambda emulator: emulator.tokens.clear(),
    "gcp-kms": lambda emulator: emulator.refuse(grpc.StatusCode.PERMISSION_DENIED),
    "azure-keyvault": lambda emulator: setattr(
        emulator, "fault", azure.refusing(403, "Forbidden", "ForbiddenByRbac")
    ),
}


@pytest.fixture(params=CLOUDS)
async def any_cloud(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cloud]:
    (tmp_path / "cloud").mkdir()
    async with CLOUDS[request.param](tmp_path / "cloud", monkeypatch) as cloud:
        yield cloud


@pytest.fixture
def command(any_cloud: Cloud, tmp_path: Path) -> Path:
    """A `kkp` that reaches the cloud from a process of its own."""
    return azure.write_command(tmp_path / "cloud/kkp") if any_cloud.uri == azure.URI else KKP


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    async with aws_kms(tmp_path, monkeypatch) as cloud:
        yield cloud


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the operator is, with nothing of KKP's."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


async def seal(here: Path, uri: str, key: str, plaintext: bytes = PLAINTEXT.encode()) -> dict[str, Any]:
    """Have KKP seal into `sealed.json`, and let it be gone with its database, master key and policy."""
    document = {
        "backend": "cloud",
        "key_id": key,
        "plaintext_b64": base64.b64encode(plaintext).decode(),
        "context": CONTEXT,
    }
    async with running(here.parent / "kkp", KKP_BACKENDS=f"cloud={uri}") as server:
        sealed = await server.post("/envelope/encrypt", document, credential=server.root_key)
        assert sealed.status == 200, sealed.raw
    shutil.rmtree(here.parent / "kkp")
    (here / "sealed.json").write_bytes(sealed.raw)
    envelope: dict[str, Any] = sealed.json["envelope"]
    return envelope


async def seal_stream(here: Path, uri: str, key: str, plaintext: bytes) -> dict[str, Any]:
    """Seal a stream into `sealed.kkp` with a message key of KKP's, and let KKP be gone."""
    document = {"backend": "cloud", "key_id": key, "context": CONTEXT, "chunk_size": streams.CHUNK}
    async with running(here.parent / "kkp", KKP_BACKENDS=f"cloud={uri}") as server:
        begun = (await server.post("/envelope/data-key", document, credential=server.root_key)).json
    shutil.rmtree(here.parent / "kkp")
    key_bytes = base64.b64decode(begun["message_key_b64"])
    (here / "sealed.kkp").write_bytes(streams.written(begun["envelope"], key_bytes, plaintext))
    envelope: dict[str, Any] = begun["envelope"]
    return envelope


class Operator:
    """Somebody with a directory of their own, and cloud credentials in the environment."""

    def __init__(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.here = here
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    async def open(
        self,
        cloud: Cloud | None,
        *arguments: str,
        file: str = "sealed.json",
        environ: Mapping[str, str] = NO_SETTINGS,
    ) -> Finished:
        """Run the command in this process, as in its own; without a cloud, no backend is named."""
        backend = () if cloud is None else ("--backend", f"cloud={cloud.uri}")
        command = ("envelope", "open", "--direct", file, *(arguments or MEANT), *backend)
        self._capfd.readouterr()
        with self._monkeypatch.context() as patched:
            patched.chdir(self.here)
            patched.setattr(os, "environ", environment(environ))
            patched.setattr(signal, "signal", lambda *_: None)  # they are the main thread's
            code = await asyncio.to_thread(_run, command)
        return checked(Finished(code, *self._capfd.readouterr()))


def _run(command: tuple[str, ...]) -> int:
    try:
        options = _parser().parse_args(command)
    except SystemExit as error:
        return int(error.code or 0)
    code: int = options.command(options)
    return code


def checked(finished: Finished) -> Finished:
    """Return how it ended, having seen that it told nobody what it worked on."""
    assert "Traceback" not in finished.err
    for secret in ("canary-value", PLAINTEXT):
        assert secret not in finished.err
    return finished


@pytest.fixture
def operator(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Operator:
    return Operator(here, monkeypatch, capfd)


async def open_by_process(here: Path, cloud: Cloud, command: Path = KKP, *more: str) -> Finished:
    """Run the command as a process of its own."""
    backend = ("--backend", f"cloud={cloud.uri}")
    arguments = ("envelope", "open", "--direct", "sealed.json", *MEANT, *backend, *more)
    return checked(await kkp(here, *arguments, executable=command))


def results(here: Path) -> list[str]:
    """Return what the record file says, which names no secret."""
    path = here / "break-glass.jsonl"
    text = path.read_text()
    assert "canary" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return [
        "attempt" if isinstance(record, Attempt) else record.result for record, _ in read_record_file(path)
    ]


# --- it opens


@pytest.mark.parametrize("configured", ["on the command line", "by the environment", "in kkp.toml"])
async def test_an_envelope_opens_without_kkp(
    any_cloud: Cloud, command: Path, here: Path, configured: str
) -> None:
    envelope = await seal(here, any_cloud.uri, any_cloud.key)
    environ = {}
    if configured == "by the environment":
        environ = {"KKP_BACKENDS": f"cloud={any_cloud.uri},gone=vault-transit://127.0.0.1:1/transit"}
    elif configured == "in kkp.toml":
        (here / "kkp.toml").write_text(f'[backends.cloud]\nuri = "{any_cloud.uri}"\n')
    arguments = MEANT if not configured.startswith("on") else (*MEANT, "--backend", f"cloud={any_cloud.uri}")
    opened = await kkp(
        here,
        "envelope",
        "open",
        "--direct",
        "sealed.json",
        *arguments,
        executable=command,
        environ=environ,
    )

    assert (opened.code, opened.out) == (0, PLAINTEXT), opened.err
    assert results(here) == ["attempt", "opened"]
    (attempt, _), (outcome, digest) = read_record_file(here / "break-glass.jsonl")
    assert isinstance(attempt, Attempt)
    assert attempt.host == socket.gethostname()
    assert attempt.reason == "the region is down"
    assert (attempt.backend, attempt.key_id) == ("cloud", any_cloud.key)
    assert attempt.context_names == ("environment", "table")
    canonical = json.dumps(envelope, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    assert attempt.envelope == sha256(canonical).hexdigest()
    assert f"opened: recorded as {outcome.chain}:2, hash {digest}" in opened.err


async def test_an_envelope_alone_opens_like_the_answer_that_it_came_in(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    envelope = await seal(here, cloud.uri, cloud.key)
    (here / "envelope.json").write_text(json.dumps(envelope, indent=2))
    assert (await operator.open(cloud, file="envelope.json")).out == PLAINTEXT
    assert (await operator.open(cloud)).out == PLAINTEXT
    first, _, third, _ = (record for record, _ in read_record_file(here / "break-glass.jsonl"))
    assert isinstance(first, Attempt)
    assert isinstance(third, Attempt)
    assert first.envelope == third.envelope  # however it is written down


async def test_the_plaintext_goes_whole_into_a_new_file_of_the_owners_alone(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    content = os.urandom(100_000)
    await seal(here, cloud.uri, cloud.key, content)
    opened = await operator.open(cloud, *MEANT, "--output", "opened")
    assert (opened.code, opened.out) == (0, "")
    assert (here / "opened").read_bytes() == content
    assert stat.S_IMODE((here / "opened").stat().st_mode) == 0o600
    assert names(here) == {"sealed.json", "break-glass.jsonl", "opened"}


async def test_the_record_goes_into_the_data_directory_if_there_is_one(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    (here / "data").mkdir(mode=0o700)
    opened = await operator.open(cloud, environ={"KKP_DATA_DIR": "data"})
    assert opened.code == 0
    assert names(here / "data") == {"break-glass.jsonl"}
    assert "kkp audit import data/break-glass.jsonl" in opened.err


async def test_nothing_of_kkp_is_needed_nor_looked_at(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    environ = {
        "KKP_OPA_URL": "http://127.0.0.1:1",
        "KKP_DATABASE_URL": "sqlite:////nowhere/kkp.db",
        "KKP_MASTER_KEY_FILE": "/nowhere/master.key",
        "KKP_POLL_SECS": "not a number",
    }
    assert (await operator.open(cloud, environ=environ)).out == PLAINTEXT


@pytest.mark.parametrize("uri", ["memory://aws", "local://"])
async def test_what_kkp_keeps_itself_opens_with_its_data_directory_alone(
    operator: Operator, uri: str
) -> None:
    here = operator.here
    key = "default" if uri == "local://" else "alias/orders"
    async with running(here, KKP_BACKENDS=f"cloud={uri}") as server:
        document = {"backend": "cloud", "key_id": key, "plaintext": PLAINTEXT, "context": CONTEXT}
        sealed = await server.post("/envelope/encrypt", document, credential=server.root_key)
    (here / "sealed.json").write_bytes(sealed.raw)
    before = (here / ".kkp/kkp.db").read_bytes()
    environ = {"KKP_BACKENDS": f"cloud={uri}"}
    assert (await operator.open(None, environ=environ)).out == PLAINTEXT
    assert (here / ".kkp/kkp.db").read_bytes() == before

    (here / ".kkp/master.key").rename(here / "master.key")
    refused = await operator.open(None, environ=environ)
    assert (refused.code, refused.out) == (2, "")
    assert "KKP_MASTER_KEY_FILE" in refused.err
    if uri == "local://":
        (here / ".kkp/kkp.db").unlink()
        refused = await operator.open(
            None, environ={**environ, "KKP_MASTER_KEY_FILE": str(here / "master.key")}
        )
        assert (refused.code, refused.out) == (2, "")
        assert "KKP_DATABASE_URL" in refused.err


# --- nobody opens by mistake


UNMEANT: dict[str, tuple[str, ...]] = {
    "no acknowledgement": ("--reason", "because"),
    "another sentence": ("--reason", "because", "--acknowledge", "yes"),
    "a space more": ("--reason", "because", "--acknowledge", ACKNOWLEDGEMENT + " "),
    "another case": ("--reason", "because", "--acknowledge", ACKNOWLEDGEMENT.upper()),
    "no reason": ("--acknowledge", ACKNOWLEDGEMENT),
    "an empty reason": ("--acknowledge", ACKNOWLEDGEMENT, "--reason", " "),
    "a reason of two lines": ("--acknowledge", ACKNOWLEDGEMENT, "--reason", "a\nb"),
    "a reason that steers the terminal": ("--acknowledge", ACKNOWLEDGEMENT, "--reason", "\x1b[2J"),
    "a reason over its limit": ("--acknowledge", ACKNOWLEDGEMENT, "--reason", "a" * 501),
}


@pytest.mark.parametrize("arguments", UNMEANT.values(), ids=UNMEANT.keys())
async def test_nothing_is_done_with(cloud: Cloud, operator: Operator, arguments: tuple[str, ...]) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    cloud.emulator.operations.clear()
    refused = await operator.open(cloud, *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert names(here) == {"sealed.json"}
    assert cloud.emulator.operations == []


async def test_a_reason_at_its_limit_is_taken(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    assert (await operator.open(cloud, "--acknowledge", ACKNOWLEDGEMENT, "--reason", "a" * 500)).code == 0


async def test_without_direct_it_points_to_kkp(here: Path) -> None:
    refused = await kkp(here, "envelope", "open", "sealed.json", *MEANT)
    assert refused.code == 2
    assert "--direct" in refused.err


async def at_a_terminal(here: Path, cloud: Cloud, typed: str, *arguments: str) -> tuple[int, str]:
    """Run it at a terminal and type a line; return its exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    process = await asyncio.create_subprocess_exec(
        KKP, "envelope", "open", "--direct", "sealed.json", "--reason", "because",
        "--backend", f"cloud={cloud.uri}", *arguments,
        cwd=here, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{typed}\n".encode())
    async with asyncio.timeout(_HANG_SECONDS):
        shown = await asyncio.to_thread(_all_of, ours)
        return await process.wait(), shown


def _all_of(terminal: int) -> str:
    shown = b""
    with suppress(OSError):  # so Linux says that nobody is at the other end any more
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    return shown.decode()


async def test_at_a_terminal_the_sentence_is_typed(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    code, shown = await at_a_terminal(here, cloud, ACKNOWLEDGEMENT, "--output", "opened")
    assert code == 0, shown
    assert (here / "opened").read_text() == PLAINTEXT
    assert re.search(r"This opens the envelope [0-9a-f]{64}", shown)
    assert "under the key 'alias/orders' of 'cloud'" in shown
    assert PLAINTEXT not in shown


@pytest.mark.parametrize("typed", ["", "yes", ACKNOWLEDGEMENT[:-1]])
async def test_at_a_terminal_nothing_else_will_do(cloud: Cloud, here: Path, typed: str) -> None:
    await seal(here, cloud.uri, cloud.key)
    code, _ = await at_a_terminal(here, cloud, typed, "--output", "opened")
    assert code == 2
    assert names(here) == {"sealed.json"}


async def test_a_plaintext_is_printed_to_a_terminal_only_if_that_is_meant(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    code, shown = await at_a_terminal(here, cloud, ACKNOWLEDGEMENT)
    assert code == 2
    assert "stdout is a terminal: give --output FILE, or --to-terminal" in shown
    assert names(here) == {"sealed.json"}
    code, shown = await at_a_terminal(here, cloud, ACKNOWLEDGEMENT, "--to-terminal")
    assert code == 0
    assert PLAINTEXT in shown


# --- what can't be opened


FILES: dict[str, tuple[bytes | None, str]] = {
    "no such file": (None, "No such file or directory"),
    "an empty file": (b"", "is no envelope"),
    "no JSON": (b"garbage", "is no envelope"),
    "no UTF-8": (b"\xff\xfe", "is no envelope"),
    "an array": (b"[]", "is no envelope"),
    "another object": (b'{"envelope": {}}', "is no envelope"),
    "deep nesting": (b"[" * 1_000_000, "is no envelope"),
    "two envelopes": (b'{"envelope": {}, "envelope": {}}', "is no envelope"),
}


# Streams.


@pytest.mark.parametrize("size", [0, 1, streams.CHUNK, 3 * streams.CHUNK + 7])
async def test_a_stream_is_opened_whole_and_on_record(cloud: Cloud, operator: Operator, size: int) -> None:
    here, plaintext = operator.here, os.urandom(size)
    envelope = await seal_stream(here, cloud.uri, cloud.key, plaintext)
    opened = await operator.open(cloud, *MEANT, "--output", "opened", file="sealed.kkp")
    assert (opened.code, opened.out) == (0, "")
    assert (here / "opened").read_bytes() == plaintext
    assert stat.S_IMODE((here / "opened").stat().st_mode) == 0o600
    assert results(here) == ["attempt", "opened"]
    attempt, _ = next(iter(read_record_file(here / "break-glass.jsonl")))
    assert isinstance(attempt, Attempt)
    assert attempt.envelope == sha256(rfc8785.dumps(envelope)).hexdigest()


async def test_a_stream_goes_to_standard_output_whole(cloud: Cloud, operator: Operator) -> None:
    text = "0123456789abcdef" * streams.CHUNK
    await seal_stream(operator.here, cloud.uri, cloud.key, text.encode())
    opened = await operator.open(cloud, file="sealed.kkp")
    assert (opened.code, opened.out) == (0, text)


async def test_of_a_damaged_stream_nothing_is_released(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal_stream(here, cloud.uri, cloud.key, b"p" * (2 * streams.CHUNK + 7))
    sealed = (here / "sealed.kkp").read_bytes()
    begins = sealed.index(b"\n") + 1
    first_ends = begins + streams.CHUNK + 16
    damaged = (
        sealed[:-1],
        sealed[:begins],
        sealed[:first_ends],
        sealed + b"\0",
        sealed[:first_ends] + bytes([sealed[first_ends] ^ 1]) + sealed[first_ends + 1 :],
        sealed.replace(b"canary-value", b"canary-other"),
    )
    for raw in damaged:
        (here / "sealed.kkp").write_bytes(raw)
        for output in ((), ("--output", "opened")):
            refused = await operator.open(cloud, *MEANT, *output, file="sealed.kkp")
            assert (refused.code, refused.out) == (1, "")
            assert not (here / "opened").exists()
    assert set(results(here)[1::2]) == {"envelope_invalid"}


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "gone": lambda path: path.unlink(missing_ok=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_stream_that_is_changed_after_it_was_checked_is_not_released(
    cloud: Cloud, operator: Operator, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    here = operator.here
    await seal_stream(here, cloud.uri, cloud.key, b"p" * (2 * streams.CHUNK))
    recorded = direct._record

    def record(*given: Any) -> None:
        recorded(*given)
        change(here / "sealed.kkp")

    monkeypatch.setattr(direct, "_record", record)
    refused = await operator.open(cloud, *MEANT, "--output", "opened", file="sealed.kkp")
    assert (refused.code, "the stream was changed after it was checked" in refused.err) == (7, True)
    assert results(here) == ["attempt", "opened", "output_failed"]
    assert not (here / "opened").exists()


async def test_a_line_without_its_chunks_in_a_pipe_is_no_stream(cloud: Cloud, operator: Operator) -> None:
    await seal_stream(operator.here, cloud.uri, cloud.key, b"p")
    os.mkfifo(operator.here / "pipe")
    sealed = (operator.here / "sealed.kkp").read_bytes()
    writing = asyncio.to_thread((operator.here / "pipe").write_bytes, sealed)
    refused, _ = await asyncio.gather(operator.open(cloud, file="pipe"), writing)
    assert (refused.code, "and no stream" in refused.err) == (2, True)


@pytest.mark.parametrize(("content", "problem"), FILES.values(), ids=FILES.keys())
async def test_no_envelope_is(operator: Operator, content: bytes | None, problem: str) -> None:
    here = operator.here
    if content is not None:
        (here / "sealed.json").write_bytes(content)
    before = names(here)
    refused = await operator.open(None)
    assert (refused.code, refused.out) == (2, "")
    assert problem in refused.err
    assert names(here) == before


async def test_a_file_larger_than_any_envelope_is_not_read_on(operator: Operator) -> None:
    here = operator.here
    with (here / "sealed.json").open("wb") as file:
        file.truncate(1 << 40)
    refused = await operator.open(None)
    assert refused.code == 2
    assert "larger than any envelope" in refused.err


async def test_a_directory_is_no_envelope(operator: Operator) -> None:
    refused = await operator.open(None, file=".")
    assert refused.code == 2
    assert "Is a directory" in refused.err


MISCONFIGURED: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "another backend": (("--backend", "other=local://"), {}, "give --backend NAME=URI"),
    "an unknown scheme": (("--backend", "cloud=far://away"), {}, "unknown scheme"),
    "no URI": (("--backend", "cloud"), {}, "give NAME=VALUE"),
    "a name twice": (("--backend", "cloud=local://", "--backend", "cloud=local://"), {}, "two have one name"),
    "settings that can't be used": ((), {"KKP_BACKENDS": "cloud"}, "KKP_BACKENDS"),
}


@pytest.mark.parametrize(
    ("arguments", "environ", "problem"), MISCONFIGURED.values(), ids=MISCONFIGURED.keys()
)
async def test_a_backend_that_there_is_not(
    cloud: Cloud,
    operator: Operator,
    arguments: tuple[str, ...],
    environ: dict[str, str],
    problem: str,
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    refused = await operator.open(None, *MEANT, *arguments, environ=environ)
    assert (refused.code, refused.out) == (2, "")
    assert problem in refused.err
    assert names(here) == {"sealed.json"}


async def test_without_credentials_the_attempt_is_on_record(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    refused = await operator.open(cloud, environ={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""})
    assert (refused.code, refused.out) == (2, "")
    assert "no credentials" in refused.err
    assert results(here) == ["attempt", "misconfigured"]


TAMPERED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the ciphertext": lambda envelope: {"ciphertext": _flipped(envelope["ciphertext"])},
    "the commitment": lambda envelope: {"commitment": _flipped(envelope["commitment"])},
    "the wrap tag": lambda envelope: {"wrap_tag": _flipped(envelope["wrap_tag"])},
    "the wrapped key": lambda envelope: {"encrypted_data_key": _flipped(envelope["encrypted_data_key"])},
    "the context": lambda envelope: {"context": {**envelope["context"], "table": "billing"}},
    "the label of its key": lambda _envelope: {"key_id": "alias/billing"},
    "its version": lambda _envelope: {"key_version": "00000000-0000-4000-8000-000000000000"},
}


def _flipped(text: str) -> str:
    return ("B" if text[0] == "A" else "A") + text[1:]


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
async def test_an_envelope_opens_not_with_a_change_in(
    cloud: Cloud, operator: Operator, tamper: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    here = operator.here
    envelope = await seal(here, cloud.uri, cloud.key)
    (here / "sealed.json").write_text(json.dumps({**envelope, **tamper(envelope)}))
    refused = await operator.open(cloud, *MEANT, "--output", "opened")
    assert (refused.code, refused.out) == (1, "")
    assert "envelope_invalid" in refused.err
    assert results(here) == ["attempt", "envelope_invalid"]
    assert not (here / "opened").exists()


FAULTS: dict[str, tuple[aws.Fault, int, str]] = {
    "throttled": (aws.refusing("ThrottlingException"), 3, "kms_unavailable"),
    "its own failure": (aws.refusing("KMSInternalException", 500), 3, "kms_unavailable"),
    "garbage": (aws.saying(aws.Reply(200, b"<html>")), 3, "kms_unavailable"),
    "a missing key": (aws.refusing("NotFoundException"), 5, "unknown_key"),
    "a disabled key": (aws.refusing("DisabledException"), 5, "key_disabled"),
    "no permission": (aws.refusing("AccessDeniedException"), 4, "kms_denied"),
    "expired credentials": (aws.refusing("ExpiredTokenException"), 4, "kms_denied"),
}


@pytest.mark.parametrize(("fault", "code", "result"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_backend_that_says_no_has_its_exit_code_and_is_on_record(
    cloud: Cloud, operator: Operator, fault: aws.Fault, code: int, result: str
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    cloud.emulator.fault = fault
    refused = await operator.open(cloud)
    assert (refused.code, refused.out) == (code, "")
    assert f"kkp: {result}: " in refused.err
    assert results(here) == ["attempt", result]


async def test_whoever_may_not_use_the_key_opens_nothing(any_cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, any_cloud.uri, any_cloud.key)
    DENY[any_cloud.uri.partition(":")[0]](any_cloud.emulator)
    refused = await operator.open(any_cloud)
    assert (refused.code, refused.out) == (4, "")
    assert results(here) == ["attempt", "kms_denied"]


async def test_a_backend_that_is_away_is_told_from_one_that_denies(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    away = Cloud("aws-kms://eu-west-1?endpoint=http://127.0.0.1:1", cloud.key, None)
    refused = await operator.open(away)
    assert (refused.code, refused.out) == (3, "")
    assert results(here) == ["attempt", "kms_unavailable"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupted_attempt_is_on_record_without_a_traceback(
    cloud: Cloud, here: Path, number: signal.Signals
) -> None:
    await seal(here, cloud.uri, cloud.key)
    asked = threading.Event()

    def hang(operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
        asked.set()
        reply: aws.Reply = cloud.emulator.hang(operation, answer)
        return reply

    cloud.emulator.fault = hang
    process = await asyncio.create_subprocess_exec(
        KKP, "envelope", "open", "--direct", "sealed.json", *MEANT, "--backend", f"cloud={cloud.uri}",
        cwd=here, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert await asyncio.to_thread(asked.wait, _HANG_SECONDS)
    process.send_signal(number)
    async with asyncio.timeout(_HANG_SECONDS):
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert results(here) == ["attempt", "interrupted"]


async def test_whoever_ignores_a_hangup_goes_on_through_it(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    asked, hung_up = threading.Event(), threading.Event()

    def wait(_operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
        asked.set()
        hung_up.wait(_HANG_SECONDS)
        return answer()

    cloud.emulator.fault = wait
    command = _script(here / "nohup-kkp", f"trap '' HUP\necho $$ >pid\nexec {KKP} \"$@\"")
    opening = asyncio.create_task(open_by_process(here, cloud, command))
    assert await asyncio.to_thread(asked.wait, _HANG_SECONDS)
    os.kill(int((here / "pid").read_text()), signal.SIGHUP)
    hung_up.set()
    opened = await opening
    assert (opened.code, opened.out) == (0, PLAINTEXT)


async def test_whoever_can_be_told_nothing_still_opens(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    deaf = _script(here / "deaf-kkp", f'exec {KKP} "$@" 2>/dev/full')
    opened = await open_by_process(here, cloud, deaf)
    assert (opened.code, opened.out) == (0, PLAINTEXT)
    assert results(here) == ["attempt", "opened"]


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


# --- no record, no plaintext


@pytest.mark.promise(28)
async def test_without_a_place_for_the_record_no_backend_is_asked(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    cloud.emulator.operations.clear()
    (here / "break-glass.jsonl").symlink_to("elsewhere")
    refused = await operator.open(cloud)
    assert (refused.code, refused.out) == (6, "")
    assert "audit_unavailable" in refused.err
    assert cloud.emulator.operations == []
    assert not (here / "elsewhere").exists()


@pytest.mark.promise(28)
async def test_without_a_record_of_the_outcome_no_plaintext_is_released(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)

    def move_the_record_away(_operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
        (here / "break-glass.jsonl").rename(here / "moved.jsonl")
        return answer()

    cloud.emulator.fault = move_the_record_away
    refused = await operator.open(cloud, *MEANT, "--output", "opened")
    assert (refused.code, refused.out) == (6, "")
    assert not (here / "opened").exists()


def _line_of(trace: list[str], pattern: str, *, after: int = 0) -> int:
    return next(number for number, line in enumerate(trace) if number >= after and re.search(pattern, line))


@pytest.mark.promise(28)
@pytest.mark.skipif(shutil.which("strace") is None, reason="the order of system calls is strace's to tell")
async def test_the_attempt_is_on_disk_before_the_backend_is_asked_and_the_outcome_before_the_release(
    cloud: Cloud, here: Path
) -> None:
    await seal(here, cloud.uri, cloud.key)
    traced = _script(
        here / "strace-kkp",
        f'exec strace -f -qq -y -s 2000 -e trace=fsync,connect,write -o {here}/trace {KKP} "$@"',
    )
    opened = await open_by_process(here, cloud, traced)
    if "ptrace" in opened.err.lower():
        pytest.skip("nothing may be traced here")
    assert opened.out == PLAINTEXT, opened.err
    trace = (here / "trace").read_text().splitlines()
    port = cloud.uri.rpartition(":")[2]
    attempt = _line_of(trace, r'write\(\d+<.*break-glass.jsonl>.*\\"type\\":\\"attempt\\"')
    asked = _line_of(trace, rf"connect\(.*htons\({port}\)")
    outcome = _line_of(trace, r'write\(\d+<.*break-glass.jsonl>.*\\"type\\":\\"outcome\\"')
    released = _line_of(trace, rf'write\(1<.*"{PLAINTEXT}"')
    for written, used in ((attempt, asked), (outcome, released)):
        flushed = _line_of(trace, r"fsync\(\d+<.*break-glass.jsonl>\) += 0", after=written)
        named = _line_of(trace, rf"fsync\(\d+<{here}>\) += 0", after=flushed)
        assert written < flushed < named < used


async def test_a_file_that_exists_is_not_overwritten(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    (here / "opened").symlink_to("elsewhere")
    refused = await operator.open(cloud, *MEANT, "--output", "opened")
    assert (refused.code, refused.out) == (2, "")
    assert "is not overwritten" in refused.err
    assert names(here) == {"sealed.json", "opened"}


async def test_a_plaintext_that_can_not_be_written_leaves_nothing_and_is_on_record(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    refused = await operator.open(cloud, *MEANT, "--output", "nowhere/opened")
    assert (refused.code, refused.out) == (7, "")
    assert results(here) == ["attempt", "opened", "output_failed"]
    assert names(here) == {"sealed.json", "break-glass.jsonl"}


def _on_a_filesystem(command: Path, on_link: str) -> Path:
    """Write a `kkp` for a filesystem without files that have no name, where a link does what it is told."""
    command.write_text(f"""#!{sys.executable}
import os, signal, sys

opened = os.open

def refuse(path, flags, *arguments, **options):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(95, "Operation not supported")
    return opened(path, flags, *arguments, **options)

def link(*_, **__):
    {on_link}

os.open, os.link = refuse, link
from kkp.cli import main
sys.exit(main())
""")
    command.chmod(0o700)
    return command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_session_that_is_lost_as_the_plaintext_is_written_leaves_none_of_it(
    cloud: Cloud, here: Path, number: signal.Signals
) -> None:
    await seal(here, cloud.uri, cloud.key)
    ended = _on_a_filesystem(here.parent / "kkp", f"os.kill(os.getpid(), {int(number)})")
    refused = await open_by_process(here, cloud, ended, "--output", "opened")
    assert refused.code == 130
    assert names(here) == {"sealed.json", "break-glass.jsonl"}


async def test_a_filesystem_without_links_gets_the_plaintext_too(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    fat = _on_a_filesystem(here.parent / "kkp", 'raise PermissionError(1, "Operation not permitted")')
    opened = await open_by_process(here, cloud, fat, "--output", "opened")
    assert opened.code == 0, opened.err
    assert (here / "opened").read_text() == PLAINTEXT
    assert names(here) == {"sealed.json", "break-glass.jsonl", "opened"}
    assert results(here) == ["attempt", "opened"]


async def test_a_full_stdout_is_told(cloud: Cloud, here: Path) -> None:
    await seal(here, cloud.uri, cloud.key)
    full = _script(here / "full-kkp", f'exec {KKP} "$@" >/dev/full')
    refused = await open_by_process(here, cloud, full)
    assert refused.code == 7
    assert "No space left on device" in refused.err
    assert results(here) == ["attempt", "opened", "output_failed"]


async def test_the_help_names_every_exit_code(here: Path) -> None:
    shown = await kkp(here, "envelope", "open", "--help")
    assert shown.code == 0
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 130):
        assert re.search(rf"\b{code}\s+\w", shown.out.partition("Exit codes:")[2]), code


# --- and into the audit log


async def test_records_are_imported_once_beside_a_server_and_the_log_stays_clean(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    for _ in range(2):
        assert (await operator.open(cloud)).code == 0
    async with serving(here):
        first = await kkp(here, "audit", "import", "break-glass.jsonl")
        assert (first.code, first.out) == (0, "4 of 4 records were new, and are in the audit log now.\n")
        assert (await operator.open(cloud, *MEANT, "--record", "break-glass.jsonl")).code == 0
        second = await kkp(here, "audit", "import", "break-glass.jsonl")
        assert second.out.startswith("2 of 6 records were new")
    third = await kkp(here, "audit", "import", "break-glass.jsonl")
    assert third.out.startswith("0 of 6 records were new")

    found = records(here / ".kkp/kkp.db")
    imported = [record["imported"] for record in found if record["type"] == "break_glass"]
    lines = (here / "break-glass.jsonl").read_text().splitlines()
    assert imported == [json.loads(line)["record"] for line in lines]
    decided = [record for record in found if record.get("action") == "import_audit"]
    assert len(decided) == 3
    assert decided[0]["caller"].startswith("operator:")
    verified = await kkp(here, "audit", "verify")
    assert verified.code == 0, verified.out
    exported = await kkp(here, "audit", "export")
    (here / "audit.jsonl").write_text(exported.out)
    assert (await kkp(here, "audit", "verify", "audit.jsonl")).code == 0


async def test_two_imports_at_a_time_take_a_record_once(cloud: Cloud, operator: Operator) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    assert (await operator.open(cloud)).code == 0
    assert (await kkp(here, "init")).code == 0
    finished = await asyncio.gather(*(kkp(here, "audit", "import", "break-glass.jsonl") for _ in range(3)))
    assert [done.code for done in finished] == [0, 0, 0], finished
    assert sorted(done.out.partition(" ")[0] for done in finished) == ["0", "0", "2"]


async def test_an_attempt_whose_process_was_killed_is_named_at_import(
    cloud: Cloud, operator: Operator
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    assert (await operator.open(cloud)).code == 0
    lines = (here / "break-glass.jsonl").read_bytes().splitlines(keepends=True)
    (here / "break-glass.jsonl").write_bytes(lines[0])
    assert (await kkp(here, "init")).code == 0
    done = await kkp(here, "audit", "import", "break-glass.jsonl")
    assert done.code == 0
    assert re.search(r"^Attempt \S+:1 has no outcome", done.out, re.MULTILINE)


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


NO_RECORD = "line 1 is no break-glass record"
BAD_IMPORTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "edited": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"region", b"rEgion")),
        1,
        "line 1 does not have its hash; nothing was imported",
    ),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), 1, "line 2 was cut short"),
    "gone": (lambda path: path.unlink(), 2, "does not exist"),
    "open to others": (lambda path: path.chmod(0o644), 2, "chmod 600"),
    "a pipe": (_make_pipe, 2, "is no file"),
    "garbage": (
        lambda path: path.write_bytes(bytes(range(256)) + b"\n"),
        1,
        "line 1 is no break-glass record",
    ),
    "garbage with returns": (
        lambda path: path.write_bytes(b"\r\x80\r\n"),
        1,
        "line 1 is no break-glass record",
    ),
}


@pytest.mark.parametrize(("spoil", "code", "problem"), BAD_IMPORTS.values(), ids=BAD_IMPORTS.keys())
async def test_nothing_is_imported_of_a_file_that_is(
    cloud: Cloud, operator: Operator, spoil: Callable[[Path], object], code: int, problem: str
) -> None:
    here = operator.here
    await seal(here, cloud.uri, cloud.key)
    assert (await operator.open(cloud)).code == 0
    assert (await kkp(here, "init")).code == 0
    spoil(here / "break-glass.jsonl")
    refused = await kkp(here, "audit", "import", "break-glass.jsonl")
    assert (refused.code, refused.out) == (code, "")
    assert problem in refused.err
    with database(here / ".kkp/kkp.db") as connection:
        query = "SELECT count(*) FROM audit_records WHERE instr(body, 'break_glass')"
        assert connection.execute(query).fetchone() == (0,)


# --- composites


@pytest.fixture
async def two_clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, str]]:
    """Two clouds, and the URIs of each and of a composite of both without its scheme."""
    async with aws_kms(tmp_path, monkeypatch) as first, vault_transit(tmp_path, monkeypatch) as second:
        members = f"key.orders=first:{first.key}&key.orders=second:{second.key}"
        yield {"first": first.uri, "second": second.uri, "cloud": members}


async def seal_with_both(here: Path, uris: Mapping[str, str]) -> None:
    configured = ",".join(f"{name}={uri}" for name, uri in uris.items())
    async with running(here.parent / "kkp", KKP_BACKENDS=configured) as server:
        document = {"backend": "cloud", "key_id": "orders", "plaintext": PLAINTEXT, "context": CONTEXT}
        sealed = await server.post("/envelope/encrypt", document, credential=server.root_key)
        assert sealed.status == 200, sealed.raw
    shutil.rmtree(here.parent / "kkp")
    (here / "sealed.json").write_bytes(sealed.raw)


def given(uris: Mapping[str, str]) -> list[str]:
    return [part for name, uri in uris.items() for part in ("--backend", f"{name}={uri}")]


@pytest.mark.parametrize("lost", ["AWS_ACCESS_KEY_ID", "VAULT_TOKEN"])
async def test_an_any_of_opens_with_the_credentials_of_one_cloud_and_an_all_of_does_not(
    two_clouds: dict[str, str], operator: Operator, lost: str
) -> None:
    any_of = {**two_clouds, "cloud": f"any-of://?{two_clouds['cloud']}"}
    await seal_with_both(operator.here, any_of)
    assert (await operator.open(None, *MEANT, *given(any_of), environ={lost: ""})).out == PLAINTEXT

    all_of = {**two_clouds, "cloud": f"all-of://?{two_clouds['cloud']}"}
    await seal_with_both(operator.here, all_of)
    refused = await operator.open(None, *MEANT, *given(all_of), environ={lost: ""})
    assert (refused.code, refused.out) == (4, "")
    assert (await operator.open(None, *MEANT, *given(all_of))).out == PLAINTEXT


async def test_an_any_of_opens_without_the_sdk_of_the_other_cloud(
    two_clouds: dict[str, str], operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = {**two_clouds, "cloud": f"any-of://?{two_clouds['cloud']}"}
    await seal_with_both(operator.here, uris)
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "kkp.kms.aws", raising=False)
    assert (await operator.open(None, *MEANT, *given(uris))).out == PLAINTEXT
    refused = await operator.open(None, *MEANT, *given(uris), environ={"VAULT_TOKEN": ""})
    assert (refused.code, refused.out) == (4, "")
    assert "its member first can't be used: aws-kms:// needs the package boto3" in refused.err


async def test_an_any_of_opens_where_one_member_alone_is_given(
    two_clouds: dict[str, str], operator: Operator
) -> None:
    await seal_with_both(operator.here, {**two_clouds, "cloud": f"any-of://?{two_clouds['cloud']}"})
    for name, member in zip(("first", "second"), two_clouds["cloud"].split("&"), strict=True):
        alone = {name: two_clouds[name], "cloud": f"any-of://?{member}"}
        assert (await operator.open(None, *MEANT, *given(alone))).out == PLAINTEXT


async def test_a_composite_needs_its_members_to_be_given_and_nobody_else(
    two_clouds: dict[str, str], operator: Operator
) -> None:
    uris = {**two_clouds, "cloud": f"any-of://?{two_clouds['cloud']}"}
    await seal_with_both(operator.here, uris)
    bystanders = {**uris, "local": "local://", "emulated": "memory://aws"}
    assert (await operator.open(None, *MEANT, *given(bystanders))).out == PLAINTEXT
    del uris["second"]
    refused = await operator.open(None, *MEANT, *given(uris))
    assert (refused.code, refused.out) == (2, "")
    assert "no backend is called second" in refused.err
