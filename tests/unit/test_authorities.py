"""Bundles of client certificate authorities: taken as the files change, and what is told of their end."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest

from kkp.errors import CertificateInvalidError, ConfigError
from kkp.web.authorities import expiry_of, load_authorities, reloading_authorities, warning_of
from tests.client_certificates import Authority

ROOT, NEXT = Authority.new("root", lives=timedelta(days=365)), Authority.new("next")
NOW = time.time()
HOLDER = ROOT.issue("a.example")


def write(path: Path, authority: Authority) -> None:
    path.write_bytes(authority.pem)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    write(path, ROOT)
    return path


def test_a_start_on_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[certificates.mesh\] ca_file: .* can't be read"):
        reloading_authorities({"mesh": tmp_path / "ca.pem"})


async def test_a_file_that_changes_is_noticed(bundle: Path) -> None:
    authorities = reloading_authorities({"": bundle})
    before = authorities.value
    watching = asyncio.create_task(authorities.run(0.01))
    try:
        write(bundle, NEXT)
        async with asyncio.timeout(30):
            while authorities.value is before:  # noqa: ASYNC110  a file system sets no event
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
    with pytest.raises(CertificateInvalidError):
        authorities.value.verify(HOLDER.chain, time.time())


def test_nothing_is_read_while_nothing_changes(bundle: Path) -> None:
    authorities = reloading_authorities({"": bundle})
    before = authorities.value
    assert not authorities.look()
    assert authorities.value is before


def test_a_bundle_that_cannot_be_used_is_a_warning_until_a_good_one_is_taken(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authorities = reloading_authorities({"": bundle})
    assert warning_of(authorities) is None
    bundle.write_text("no bundle")
    assert authorities.look()
    assert authorities.value.verify(HOLDER.chain, time.time())
    (record,) = caplog.records
    assert "is refused, the old one stays: KKP_CLIENT_CA_FILE: " in record.getMessage()
    assert "were refused" in (warning_of(authorities) or "")
    bundle.write_bytes(ROOT.pem)
    assert authorities.look()
    assert warning_of(authorities) is None


DAY, HOUR = timedelta(days=1), timedelta(hours=1)
# An authority that lives for 30 hours is one for which less than 10 are soon.
ENDS: dict[str, tuple[list[Authority], str | None]] = {
    "a little after 14 days": ([Authority.new(lives=60 * DAY, ago=46 * DAY - HOUR)], None),
    "a little before 14 days": (
        [Authority.new(lives=60 * DAY, ago=46 * DAY + HOUR)],
        "An authority of client certificates expires at ",
    ),
    "with more than a third of a short life to go": (
        [Authority.new(lives=30 * HOUR, ago=20 * HOUR - HOUR)],
        None,
    ),
    "with less than a third of a short life to go": (
        [Authority.new(lives=30 * HOUR, ago=20 * HOUR + HOUR)],
        "An authority of client certificates expires at ",
    ),
    "an hour ago": (
        [Authority.new(lives=DAY, ago=DAY + HOUR)],
        "An authority of client certificates expired at ",
    ),
    "soon, as one of several does": (
        [ROOT, Authority.new("soon", lives=60 * DAY, ago=50 * DAY)],
        "An authority of client certificates expires at ",
    ),
    "soon, as several do": (
        [
            Authority.new("soon", lives=60 * DAY, ago=50 * DAY),
            Authority.new("gone", lives=DAY, ago=2 * DAY),
        ],
        "2 authorities of client certificates expired or will soon, the first at ",
    ),
}


@pytest.mark.parametrize(("authorities", "beginning"), ENDS.values(), ids=ENDS.keys())
def test_a_warning_is_told_of_a_bundle_that_ends(
    tmp_path: Path, authorities: list[Authority], beginning: str | None
) -> None:
    (tmp_path / "ca.pem").write_bytes(b"".join(each.pem for each in authorities))
    told = expiry_of(load_authorities({"": tmp_path / "ca.pem"}), NOW)
    assert (told is None) if beginning is None else (told or "").startswith(beginning)
