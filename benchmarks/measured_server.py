"""`kkp dev` with a stopwatch on each part of the road, so that one run tells where a request's time goes.

The stopwatches read the CPU clock of the thread that does the part; they add up, and are written to standard
error as JSON when the server is told to stop. Reading that clock twice costs about a microsecond, which falls
into the part. What no stopwatch sees (HTTP, the event loop, the hand-over between threads) is the rest.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import time
from collections import Counter
from typing import Any

from kkp import cli, tokens
from kkp.audit.log import AuditLog
from kkp.authn.authenticator import Authenticator
from kkp.authz.embedded import EmbeddedPolicy
from kkp.operations.envelopes import Decrypt
from kkp.operations.tokens import IssueToken
from kkp.pipeline import Pipeline
from kkp.store.sqlite import _Lane
from kkp.web import schemas

# No part stands inside another one, so their sum is never more than the whole. No coroutine of these waits.
_PARTS: dict[str, list[tuple[Any, str]]] = {
    "parse": [(schemas, "decode"), (schemas.TokenBody, "request"), (schemas.DecryptBody, "request")],
    "authenticate": [(Authenticator, "authenticate")],
    "propose": [(IssueToken, "propose"), (Decrypt, "propose"), (Pipeline, "_question")],
    "decide": [(EmbeddedPolicy, "answer")],
    "audit: record": [(AuditLog, "_enqueue"), (AuditLog, "_link_all")],
    "audit: commit": [(_Lane, "_act")],
    "sign": [(tokens, "sign")],
    "open": [(Decrypt, "run")],
}
_spent_ns: Counter[str] = Counter()


def _measure(part: str, owner: Any, name: str) -> None:  # noqa: ANN401  a module or a class
    function = getattr(owner, name)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  whatever the function takes and returns
        start = time.thread_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            _spent_ns[part] += time.thread_time_ns() - start

    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the same
        start = time.thread_time_ns()
        try:
            return await function(*args, **kwargs)
        finally:
            _spent_ns[part] += time.thread_time_ns() - start

    setattr(owner, name, coroutine if inspect.iscoroutinefunction(function) else plain)


def main() -> int:
    for part, functions in _PARTS.items():
        for owner, name in functions:
            _measure(part, owner, name)
    code = cli.main(["dev"])
    json.dump(_spent_ns, sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
