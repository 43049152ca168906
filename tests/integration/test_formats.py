"""What docs/formats.md shows how to do gives what KKP takes."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import running

FORMATS = Path(__file__).parents[2] / "docs/formats.md"
KEY = {"backend": "aws", "key_id": "alias/orders"}


def sample() -> str:
    found = re.search(
        r"<!-- tested: seal detached -->\n```python\n(.*?)```\n<!-- end -->", FORMATS.read_text(), re.DOTALL
    )
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
        command = [sys.executable, "-c", sample()]
        sealed = await asyncio.to_thread(
            subprocess.run, command, input=begun.raw, capture_output=True, check=True, cwd=tmp_path
        )
        token = await kkp.token(kkp.root_key)
        headers = {"Content-Type": "application/json"}
        opened = await kkp.request(
            "POST", "/envelope/decrypt", data=sealed.stdout, headers=headers, credential=token
        )
    assert opened.json["plaintext_b64"] == "d2hhdCBpcyB0byBiZSBzZWFsZWQ="
