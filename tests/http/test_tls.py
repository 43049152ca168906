"""TLS on real sockets: what a handshake may be, and how a certificate is replaced while it serves."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from kkp.config import Address
from kkp.errors import ConfigError
from kkp.limits import ConnectionLimit
from kkp.web import server
from kkp.web.server import Edge, serving
from kkp.web.tls import ReloadingTLS, check_tls
from tests.http.certificates import Pair, new_pair

_HANG_SECONDS = 30
OLD, NEW = new_pair(), new_pair()
OF_RSA = new_pair(rsa.generate_private_key(65537, 2048))


@pytest.fixture
async def tls(tmp_path: Path) -> ReloadingTLS:
    OLD.write(tmp_path)
    return ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key")


@pytest.fixture
async def port(tls: ReloadingTLS) -> AsyncIterator[int]:
    async with serving(web.Application(), Address("127.0.0.1", 0), tls=tls.context) as address:
        yield address.port


def client(pair: Pair | None = None) -> ssl.SSLContext:
    """Return a client that trusts this certificate alone, or looks at any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if pair is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=pair.cert_pem.decode())
    return context


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext, name: str | None = "localhost"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, ssl.SSLObject]]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name if name is not None else ""
    )
    try:
        yield reader, writer, writer.get_extra_info("ssl_object")
    finally:
        writer.close()
        with suppress(ssl.SSLError):
            await writer.wait_closed()


async def shown(port: int, name: str | None = "localhost") -> bytes | None:
    """Return the certificate that a new connection is shown."""
    async with connected(port, client(), name) as (_, _, connection):
        return connection.getpeercert(binary_form=True)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return await asyncio.wait_for(reader.readuntil(b"\r\n"), _HANG_SECONDS)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_HANG_SECONDS):
        while not condition():  # noqa: ASYNC110  a file system sets no event
            await asyncio.sleep(0.01)


# Handshakes.


async def test_a_client_that_trusts_the_certificate_gets_an_answer(port: int) -> None:
    async with connected(port, client(OLD)) as (reader, writer, connection):
        assert connection.version() == "TLSv1.3"
        assert (await answer(reader, writer)).startswith(b"HTTP/1.1 404")


async def test_a_client_that_gives_no_name_is_served(port: int) -> None:
    assert await shown(port, None) == OLD.der


async def test_tls_1_2_is_served_with_forward_secrecy(port: int) -> None:
    context = client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with connected(port, context) as (_, _, connection):
        cipher = connection.cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE-")
        assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]


@pytest.mark.parametrize(
    "cipher", ["AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA384", "DHE-RSA-AES256-GCM-SHA384"]
)
async def test_attack_a_weak_cipher_is_refused(port: int, cipher: str) -> None:
    context = client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with pytest.raises(OSError):  # noqa: PT011  an alert or a reset, as the kernel's timing has it
        await shown_by(port, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_attack_an_old_version_is_refused(port: int, version: ssl.TLSVersion) -> None:
    context = client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(OSError):  # noqa: PT011  an alert or a reset, as the kernel's timing has it
        await shown_by(port, context)


async def shown_by(port: int, context: ssl.SSLContext) -> bytes | None:
    async with connected(port, context) as (_, _, connection):
        return connection.getpeercert(binary_form=True)


# A new pair.


async def test_a_new_pair_serves_new_connections_and_the_old_ones_go_on(
    tls: ReloadingTLS, port: int, tmp_path: Path
) -> None:
    async with connected(port, client(OLD)) as (reader, writer, _):
        assert (await answer(reader, writer)).startswith(b"HTTP/1.1 404")
        NEW.write(tmp_path)
        tls.reload()
        assert await shown(port) == NEW.der
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await asyncio.wait_for(reader.read(1), _HANG_SECONDS)


async def test_a_key_of_another_type_leaves_nothing_of_the_old_one(
    tls: ReloadingTLS, port: int, tmp_path: Path
) -> None:
    only_rsa, only_ec = client(), client()
    for context, kind in ((only_rsa, "RSA"), (only_ec, "ECDSA")):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"ECDHE-{kind}-AES256-GCM-SHA384")
    assert await shown_by(port, only_ec) == OLD.der
    OF_RSA.write(tmp_path)
    tls.reload()
    assert await shown_by(port, only_rsa) == OF_RSA.der
    with pytest.raises(OSError):  # noqa: PT011  an alert or a reset, as the kernel's timing has it
        await shown_by(port, only_ec)


async def watched(tls: ReloadingTLS, port: int, change: Callable[[], None]) -> bytes | None:
    """Change the files beside the task that watches them, and return what is shown once it has looked."""
    before = tls._pair.value
    watching = asyncio.create_task(tls.run(0.01))
    try:
        change()
        await eventually(lambda: tls._pair.value is not before)
    finally:
        watching.cancel()
    return await shown(port)


async def test_files_that_are_written_over_are_noticed(tls: ReloadingTLS, port: int, tmp_path: Path) -> None:
    assert await watched(tls, port, lambda: NEW.write(tmp_path)) == NEW.der


async def test_files_that_are_renamed_into_place_are_noticed(
    tls: ReloadingTLS, port: int, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    NEW.write(tmp_path / "new")

    def rename() -> None:
        for name in ("tls.crt", "tls.key"):
            (tmp_path / "new" / name).replace(tmp_path / name)

    assert await watched(tls, port, rename) == NEW.der


async def test_the_way_that_kubernetes_swaps_a_secret_is_noticed(tmp_path: Path) -> None:
    for name, pair in (("..1", OLD), ("..2", NEW)):
        (tmp_path / name).mkdir()
        pair.write(tmp_path / name)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    tls = ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key")

    def swap() -> None:
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    async with serving(web.Application(), Address("127.0.0.1", 0), tls=tls.context) as address:
        assert await shown(address.port) == OLD.der
        assert await watched(tls, address.port, swap) == NEW.der


# Who connects and never shakes hands.


@pytest.mark.promise(36)
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "half a greeting"])
async def test_a_handshake_that_never_ends_is_cut_off(
    tls: ReloadingTLS, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "_HANDSHAKE_SECONDS", 0.1)
    async with serving(web.Application(), Address("127.0.0.1", 0), tls=tls.context) as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(sent)
        async with asyncio.timeout(_HANG_SECONDS):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.promise(36)
async def test_who_reads_nothing_more_and_says_no_farewell_is_cut_off(
    tls: ReloadingTLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(server, "_FAREWELL_SECONDS", 0.1)
    limit = ConnectionLimit(1, no_matter)
    async with serving(
        web.Application(), Address("127.0.0.1", 0), Edge(connections=limit), tls=tls.context
    ) as address:
        with await asyncio.to_thread(handshaken, address.port):
            async with asyncio.timeout(_HANG_SECONDS):
                while not await is_welcome(address.port):
                    pass


def handshaken(port: int) -> ssl.SSLSocket:
    """Return a connection that has shaken hands, and that nobody reads from then on."""
    return client().wrap_socket(socket.create_connection(("127.0.0.1", port)))


async def is_welcome(port: int) -> bool:
    """Tell whether a connection more is taken."""
    try:
        await shown(port)
    except OSError:
        return False
    return True


def no_matter() -> None:
    """Count no refusal."""


@pytest.mark.promise(36)
async def test_attack_silent_connections_count_before_their_handshake(tls: ReloadingTLS) -> None:
    refused: list[None] = []
    edge = Edge(connections=ConnectionLimit(3, lambda: refused.append(None)))
    async with serving(web.Application(), Address("127.0.0.1", 0), edge, tls=tls.context) as address:
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(3)]
        async with asyncio.timeout(_HANG_SECONDS):
            assert not await is_welcome(address.port)
            assert len(refused) == 1
            silent.pop()[1].close()
            while not await is_welcome(address.port):
                pass
        for _, writer in silent:
            writer.close()


# A bad pair.


def garbage_certificate(directory: Path) -> None:
    (directory / "tls.crt").write_text("no certificate")


def empty_certificate(directory: Path) -> None:
    (directory / "tls.crt").write_text("")


def no_certificate(directory: Path) -> None:
    (directory / "tls.crt").unlink()


def directory_for_a_certificate(directory: Path) -> None:
    (directory / "tls.crt").unlink()
    (directory / "tls.crt").mkdir()


def garbage_key(directory: Path) -> None:
    (directory / "tls.key").write_text("no key")


def no_key(directory: Path) -> None:
    (directory / "tls.key").unlink()


def other_key(directory: Path) -> None:
    (directory / "tls.key").write_bytes(NEW.key_pem())


def other_kind_of_key(directory: Path) -> None:
    (directory / "tls.key").write_bytes(OF_RSA.key_pem())


def only_the_certificate_renewed(directory: Path) -> None:
    (directory / "tls.crt").write_bytes(NEW.cert_pem)


def key_for_the_group(directory: Path) -> None:
    (directory / "tls.key").chmod(0o640)


def key_for_everybody(directory: Path) -> None:
    (directory / "tls.key").chmod(0o604)


def key_with_a_passphrase(directory: Path) -> None:
    (directory / "tls.key").write_bytes(OLD.key_pem(b"canary-passphrase"))


BAD_PAIRS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a certificate that is none": (garbage_certificate, "can't be used"),
    "an empty certificate": (empty_certificate, "can't be used"),
    "no certificate": (no_certificate, "No such file"),
    "a directory": (directory_for_a_certificate, "can't be"),
    "a key that is none": (garbage_key, "can't be used"),
    "no key": (no_key, "No such file"),
    "another pair's key": (other_key, "is not the key of"),
    "a key of another kind": (other_kind_of_key, "is not the key of"),
    "a rotation half-way done": (only_the_certificate_renewed, "is not the key of"),
    "a key that the group can read": (key_for_the_group, "chmod 600"),
    "a key that everybody can read": (key_for_everybody, "chmod 600"),
    "a key with a passphrase": (key_with_a_passphrase, "asks for a passphrase"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
async def test_a_start_is_refused_on(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    OLD.write(tmp_path)
    spoil(tmp_path)
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    (problem,) = check_tls(*files)
    assert problem.startswith("KKP_TLS_")
    assert message in problem
    with pytest.raises(ConfigError):
        ReloadingTLS(*files)


@pytest.mark.parametrize(("spoil", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
async def test_the_old_pair_goes_on_and_the_log_says_why(  # noqa: PLR0913, PLR0917  fixtures
    tls: ReloadingTLS,
    port: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(tmp_path)
    tls.reload()
    assert await shown(port) == OLD.der
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert message in record.getMessage()


async def test_a_bad_pair_is_told_once_and_a_good_one_after_it_is_taken(
    tls: ReloadingTLS, port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watching = asyncio.create_task(tls.run(0.001))
    try:
        only_the_certificate_renewed(tmp_path)
        await eventually(lambda: len(caplog.records) > 0)
        await asyncio.sleep(0.05)
        assert len(caplog.records) == 1
        before = tls._pair.value
        other_key(tmp_path)
        await eventually(lambda: tls._pair.value is not before)
    finally:
        watching.cancel()
    assert await shown(port) == NEW.der


# The dates.


DATES: dict[str, tuple[timedelta, str]] = {
    "expires a little before 14 days": (timedelta(days=14, minutes=-1), "The TLS certificate expires at "),
    "expires within the hour": (timedelta(minutes=30), "The TLS certificate expires at "),
    "has expired": (timedelta(minutes=-1), "The TLS certificate expired at "),
}


@pytest.mark.parametrize(("lasts", "beginning"), DATES.values(), ids=DATES.keys())
async def test_a_warning_is_told_of_a_certificate_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lasts: timedelta, beginning: str
) -> None:
    new_pair(lasts=lasts).write(tmp_path)
    tls = ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key")
    assert (tls.warning() or "").startswith(beginning)
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert record.getMessage().startswith(beginning)
    NEW.write(tmp_path)
    tls.reload()
    assert tls.warning() is None


async def test_of_a_certificate_good_for_longer_than_14_days_nothing_is_told(tmp_path: Path) -> None:
    new_pair(lasts=timedelta(days=14, minutes=1)).write(tmp_path)
    assert ReloadingTLS(tmp_path / "tls.crt", tmp_path / "tls.key").warning() is None


async def test_a_refused_pair_is_a_warning_until_a_good_one_is_taken(
    tls: ReloadingTLS, tmp_path: Path
) -> None:
    assert tls.warning() is None
    only_the_certificate_renewed(tmp_path)
    tls.reload()
    assert "The new TLS certificate was refused" in (tls.warning() or "")
    NEW.write(tmp_path)
    tls.reload()
    assert tls.warning() is None


async def test_the_log_names_the_certificate_taken_by_its_end_and_its_fingerprint(
    tls: ReloadingTLS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kkp.web.tls")
    NEW.write(tmp_path)
    tls.reload()
    end = NEW.certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M:%SZ")
    told = f"good until {end}, SHA-256 {hashlib.sha256(NEW.der).hexdigest()}"
    assert caplog.records[0].getMessage().endswith(told)
    assert tls.certificate.not_after == NEW.certificate.not_valid_after_utc.timestamp()


async def test_nothing_is_wrong_with_no_tls_at_all() -> None:
    assert check_tls(None, None) == []
    assert check_tls(Path("tls.crt"), None) == []
