"""What the page on token exchange tells a reader to type does, as it stands there, what it says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from kkp.web.exchange import TOKEN_EXCHANGE, ExchangeBody
from tests.harness import running
from tests.integration.process import KKP
from tests.integration.test_readme import commands, shell

PAGE = Path(__file__).parents[2] / "docs/callers/token-exchange.md"


async def test_a_token_is_exchanged_asked_about_and_ended_by_curl_and_by_a_library(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        environ = {
            "PATH": f"{KKP.parent}:{os.environ['PATH']}",
            "NO_PROXY": "*",
            "KKP": f"http://{server.host}:{server.port}",
        }
        markers = ("caller", "exchange", "library", "refusal", "life", "metadata")
        script = "\n".join(block for marker in markers for block in commands(marker, PAGE))
        lines = (await shell(tmp_path, script, environ=environ)).splitlines()
        issued, library, refused, told, ended, again, metadata = lines
        token = json.loads(issued)
        assert set(token) == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}
        assert library == "Bearer encrypt decrypt"
        assert json.loads(refused)["error"] == "invalid_target"
        assert json.loads(refused)["reasons"] == ["tokens.no_grant"]
        assert f'"{json.loads(refused)["error_description"]}"' in PAGE.read_text()
        assert (json.loads(told)["active"], json.loads(told)["scope"]) == (True, "encrypt decrypt")
        assert (json.loads(ended), json.loads(again)) == ({}, {"active": False})
        assert json.loads(metadata)["grant_types_supported"] == [TOKEN_EXCHANGE]
        sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
        dead = await server.post("/envelope/encrypt", sealing, credential=token["access_token"])
        assert dead.problem() == "token_invalid"


def test_the_page_describes_every_parameter_and_no_other() -> None:
    described = re.search(r"^\| parameter \|.*?\n\n", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert described is not None
    assert re.findall(r"^\| `(\w+)` \|", described[0], re.MULTILINE) == list(ExchangeBody.__struct_fields__)
