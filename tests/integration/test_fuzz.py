"""The parsers hold against inputs that a fuzzer finds by watching which of their lines each one reaches.

20,000 inputs by default, begun from what is right; `KKP_TEST_SCALE=50` makes it a million.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kkp.web import schemas
from tests import parsing
from tests.promises import Recorder
from tests.scale import SCALE

INPUTS = 20_000 * SCALE
SECONDS_EACH, MEMORY_MIB = 5, 1024  # far beyond any reader, on a machine that is busy with other tests
HANG_SECONDS = 120.0 + 30.0 * SCALE
ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "sdk/vectors/envelope_v1.json"


def seeds() -> list[bytes]:
    """Return what each reader takes, or nearly, behind the byte that chooses it."""
    bodies = [
        json.dumps(body.example).encode()
        for body in (schemas.TokenBody, schemas.EncryptBody, schemas.DecryptBody, schemas.IdentityBody,
                     schemas.ExplainBody)
    ]  # fmt: skip
    documents = [
        *bodies,
        *(json.dumps(case["envelope"]).encode() for case in json.loads(VECTORS.read_text())["seal"]),
        b'{"items":[{"a":1},{"b":[2]}]}',
        b"token=a.b.c&token_type_hint=access_token",
        b"eyJhbGciOiJFZERTQSIsImtpZCI6ImtpZCIsInR5cCI6ImtrcCtqd3QifQ.e30." + b"A" * 86,
        b'{"check":"","kind":"any-of","parts":[{"backend":"aws","encrypted_data_key":"AAAA"}],"v":1}',
    ]
    return [bytes([number]) + raw for raw in documents for number in range(len(parsing.READERS))]


@pytest.mark.promise(18)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed here")
def test_no_input_that_a_fuzzer_finds_crashes_a_parser(tmp_path: Path, record_promise: Recorder) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    options = [
        f"-runs={INPUTS}", "-seed=18", "-max_len=16384", f"-timeout={SECONDS_EACH}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={tmp_path}/",
    ]  # fmt: skip
    command = [sys.executable, "-m", "tests.fuzzing", *options, str(corpus)]
    ended = subprocess.run(  # noqa: S603  our own
        command, check=False, capture_output=True, text=True, timeout=HANG_SECONDS, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    done = re.search(r"Done (\d+) (?:runs )?in", ended.stderr)
    assert done is not None, ended.stderr[-4000:]
    assert int(done[1]) >= INPUTS
    record_promise(18, "fuzzed inputs", int(done[1]))
