"""`kkp decrypt FILE`: open a stream here, which `kkp encrypt` or an SDK made, under a key of a running KKP.

KKP sees who asks, and the stream's first line, and never what is in it. What is done is in `kkp.cli.calling`.
"""

from __future__ import annotations

import argparse

from kkp.cli import callers


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    decrypt = commands.add_parser(
        "decrypt",
        help="open a file that was sealed with encrypt",
        description=f"{callers.CREDENTIAL} It needs a grant to decrypt. What goes to a pipe is whole only if "
        "the exit code is 0.",
        epilog=callers.CODES,
    )
    callers.add_files(decrypt, "the file without .kkp at the end of its name")
    callers.add_kkp(decrypt)
    callers.add_audience(decrypt, "the audience of the token that this takes: one that the grant has")
    decrypt.set_defaults(command=callers.calling("decrypt"))
