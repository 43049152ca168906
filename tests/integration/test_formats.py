"""What docs/formats.md shows how to do gives what KKP takes."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kkp.audit.base import ChainHead, RecordType
from kkp.audit.chain import link
from kkp.audit.checkpoints import CheckpointSigner
from kkp.audit.proofs import RecordProof, write_proof
from kkp.audit.prover import prove_record
from kkp.audit.tree import Frontier
from kkp.rows import LogPosition
from tests.audited import MASTER_KEY, PUBLIC_KEY, AuditedDatabase
from tests.databases import SQLitePlace
from tests.fakes.logs import NOW
from tests.harness import ISSUER, running

FORMATS = Path(__file__).parents[2] / "docs/formats.md"
KEY = {"backend": "aws", "key_id": "alias/orders"}


def sample(marker: str) -> str:
    pattern = rf"<!-- tested: {marker} -->\n```python\n(.*?)```\n<!-- end -->"
    found = re.search(pattern, FORMATS.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"context": {"table": "orders", "Größe": 'é\u2028\n\x01\x7f"\\\\/'}, "associated_data": "row 7"},
    ],
)
async def test_the_sample_seals_an_envelope_that_opens(tmp_path: Path, labels: dict[str, object]) -> None:
    async with running(tmp_path) as kkp:
        begun = await kkp.post("/envelope/data-key", {**KEY, **labels}, credential=kkp.root_key)
        assert begun.status == 200
        command = [sys.executable, "-c", sample("seal detached")]
        sealed = await asyncio.to_thread(
            subprocess.run, command, input=begun.raw, capture_output=True, check=True, cwd=tmp_path
        )
        token = await kkp.token(kkp.root_key)
        headers = {"Content-Type": "application/json"}
        opened = await kkp.request(
            "POST", "/envelope/decrypt", data=sealed.stdout, headers=headers, credential=token
        )
    assert opened.json["plaintext_b64"] == "d2hhdCBpcyB0byBiZSBzZWFsZWQ="


def verified(proof: bytes, directory: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", sample("verify proof"), PUBLIC_KEY]
    return subprocess.run(command, input=proof, capture_output=True, check=False, cwd=directory)  # noqa: S603  the page's own


async def test_the_sample_verifies_a_proof_and_refuses_an_altered_one(tmp_path: Path) -> None:
    log = AuditedDatabase(SQLitePlace(tmp_path / "kkp.db"), tmp_path / "kkp.db")
    async with log.boot("server") as process:
        await process.record(20)
        await process.checkpoint()
    for seq in (1, 6, 21):
        proof = await log.read(partial(prove_record, chain="server", seq=seq))
        found = await asyncio.to_thread(verified, write_proof(proof), tmp_path)
        assert (found.returncode, found.stdout.decode()) == (0, f"proven: {proof.record}\n"), found.stderr
        for changes in (
            {"record": proof.record.replace('"v":1', '"v":2')},
            {"path": ("0" * 64, *proof.path[1:])},
            {"path": proof.path[1:]},
            {"seq": seq + 1},
        ):
            wrong = write_proof(msgspec.structs.replace(proof, **changes))
            assert (await asyncio.to_thread(verified, wrong, tmp_path)).returncode == 1


async def test_the_sample_refuses_a_record_behind_the_end_of_the_tree_whose_path_leads_to_the_root(
    tmp_path: Path,
) -> None:
    """RFC 9162, 2.1.3.2, step 1. The record is the one leaf there is, and says that it is the second."""
    for seq, code in ((2, 1), (1, 0)):
        record = link(ChainHead("server", seq - 1, bytes(32)), NOW, RecordType.PROBE, {})
        tree = Frontier()
        tree.extend([record.hash])
        position = LogPosition(1, 1, (ChainHead("server", 1, record.hash),))
        signed = CheckpointSigner(MASTER_KEY).sign(position, None, NOW, roots={"server": tree.root()})
        proof = RecordProof(
            chain="server", seq=seq, record=record.body.decode(), checkpoint=signed.line.decode(), path=()
        )
        found = await asyncio.to_thread(verified, write_proof(proof), tmp_path)
        assert found.returncode == code, found.stderr


async def test_the_sample_verifies_the_list_of_revocations_and_takes_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as kkp:
        revocation = {"kind": "key", "backend": "aws", "name": "alias/orders"}
        assert (await kkp.post("/revocations", revocation, credential=kkp.root_key)).status == 200
        document = (await kkp.get("/revocations/list")).raw
        token = await kkp.token(kkp.root_key, backend="gcp", key_id="orders")
        jwks = f"http://{kkp.host}:{kkp.port}/keys/jwks"

        async def read(given: bytes, issuer: str = ISSUER) -> subprocess.CompletedProcess[bytes]:
            command = [sys.executable, "-c", sample("revocation list"), jwks, issuer]
            return await asyncio.to_thread(
                subprocess.run, command, input=given, capture_output=True, check=False
            )

        found = await read(document)
        assert found.returncode == 0, found.stderr
        assert b"aaruFdqZjqzTXJQdD5wP64ymKxLNDjd_7dq5TMZiYSI" in found.stdout
        forged = document.rpartition(b".")[0] + b"." + b"A" * 86
        assert b"InvalidSignatureError" in (await read(forged)).stderr
        assert b"InvalidIssuerError" in (await read(document, "https://other.example")).stderr
        assert b"AssertionError" in (await read(token.encode())).stderr
