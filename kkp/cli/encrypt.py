"""`kkp encrypt FILE`: seal a file of any size here, as a stream, under a key of a running KKP.

KKP sees who asks, and for which key, and never the file. What is done is in `kkp.cli.calling`, the format in
docs/formats.md.
"""

from __future__ import annotations

import argparse

from kkp.cli import callers


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    encrypt = commands.add_parser(
        "encrypt",
        help="seal a file, of any size, under a key of KKP's",
        description=f"{callers.CREDENTIAL} It needs a grant to encrypt.",
        epilog=callers.CODES,
    )
    callers.add_files(encrypt, "the file with .kkp behind its name")
    callers.add_kkp(encrypt)
    callers.add_key(encrypt)
    callers.add_pairs(encrypt, "--context", "what is authenticated, in clear, and seen by policy")
    encrypt.add_argument("--associated-data", metavar="TEXT", help="text that is authenticated, in clear")
    encrypt.set_defaults(command=callers.calling("encrypt"))
