"""verify.py KKP AUDIENCE: verify the token on standard input, and print who is calling and what for.

Exits with 1 where the token is refused, and with 2 where it can't be told.
"""

import json
import sys

from kkp_client import KKPError, SyncTokenVerifier, TokenError


def main(url: str, audience: str) -> int:
    """Return the program's exit code."""
    with SyncTokenVerifier(url, audience=audience) as verifier:
        try:
            claims = verifier.verify(sys.stdin.read().strip())
        except KKPError as error:
            print(f"{error.code} ({error.reason}): {error}", file=sys.stderr)
            return 1 if isinstance(error, TokenError) else 2
    print(json.dumps(claims.as_json(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
