"""Answers calls of the verifying functions: one JSON object a line on standard input, one verdict a line out.

```
{"kind": "token", "key_set": text | null, "fetched_at", "revocation_list": text | null, "wants_revocations",
 "token", "issuer", "audience", "now", "leeway", "proof": {…} | null, "certificate_sha256": text | null}
{"kind": "key_set", "document_base64url"}
{"kind": "revocation_list", "list", "key_set": text | null, "fetched_at", "issuer", "now", "leeway",
 "highest_seq"}
```

The answer is `claims`, or `code` and `reason`; of a key set `keys`. The list of revocations beside a token is
read as of its own `iat`, with the same key set, fetched then; one that is refused is none. An exception that
is no error of this package's is answered as `crash`.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from kkp_client.dpop import PresentedProof
from kkp_client.encoding import base64url
from kkp_client.errors import KKPError
from kkp_client.keys import KeySet, read_key_set
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import RevocationList, Revocations, verify_revocation_list
from kkp_client.tokens import verify_token

Call: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def token_verdict(call: Call) -> Answer:
    keys = key_set(call["key_set"], call["fetched_at"])
    revocations = Revocations(revocation_list(call)) if call["wants_revocations"] else None
    shown, memory = call["proof"], ReplayMemory()

    def verify() -> Any:
        return verify_token(
            call["token"],
            keys=keys,
            now=call["now"],
            issuer=call["issuer"],
            audience=call["audience"],
            leeway_seconds=call["leeway"],
            revocations=revocations,
            proof=shown and PresentedProof(shown["proof"], shown["method"], shown["url"]),
            proof_memory=memory,
            certificate_sha256=call["certificate_sha256"],
        )

    if shown and shown["used_before"]:
        answered(verify)
    return answered(verify)


def key_set(text: str | None, fetched_at: float) -> KeySet | None:
    """Read the text of a key set; None, or a text that makes none, is no set."""
    if text is None:
        return None
    try:
        return KeySet(read_key_set(text.encode()), fetched_at)
    except ValueError:
        return None


def revocation_list(call: Call) -> RevocationList | None:
    text = call["revocation_list"]
    if text is None:
        return None
    now = issued_at(text)
    try:
        return verify_revocation_list(
            text,
            keys=key_set(call["key_set"], now),
            now=now,
            issuer=call["issuer"],
            leeway_seconds=call["leeway"],
        )
    except KKPError:
        return None


def issued_at(text: str) -> float:
    """Return the `iat` of a list that was not verified, or no number."""
    try:
        return float(json.loads(decode(text.split(".")[1]))["iat"])
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return float("nan")


def list_verdict(call: Call) -> Answer:
    return answered(
        lambda: verify_revocation_list(
            call["list"],
            keys=key_set(call["key_set"], call["fetched_at"]),
            now=call["now"],
            issuer=call["issuer"],
            leeway_seconds=call["leeway"],
            highest_seq=call["highest_seq"] or 0,
        )
    )


def key_set_verdict(call: Call) -> Answer:
    try:
        keys = read_key_set(decode(call["document_base64url"]))
    except ValueError:
        return {"keys": None}
    return {"keys": {kid: base64url(key.raw) for kid, key in keys.items()}}


def answered(verify: Callable[[], Any]) -> Answer:
    try:
        return {"claims": verify().as_json()}
    except KKPError as error:
        return {"code": error.code, "reason": error.reason}


VERDICTS = {"token": token_verdict, "key_set": key_set_verdict, "revocation_list": list_verdict}


def answer_to(call: Call) -> Answer:
    try:
        return VERDICTS[call["kind"]](call)
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        return {"crash": repr(error)}


if __name__ == "__main__":
    for each in sys.stdin:
        print(json.dumps(answer_to(json.loads(each))), flush=True)  # noqa: T201  it answers so
