"""`kkp audit prove` and `kkp audit verify-proof`: show somebody else that a record is in the log.

Proving reads the database, as `kkp audit verify` does. Verifying a proof needs the file and the public key,
and nothing else: no database, no settings, no network.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from kkp.audit.export import read_cursor
from kkp.audit.proofs import (
    MAX_PROOF_BYTES,
    DisprovedError,
    NoProofError,
    Proof,
    Proven,
    RecordProof,
    check_proof,
    read_proof,
    write_proof,
)
from kkp.audit.prover import UnprovableError, prove_record
from kkp.audit.verify import UnreadableError
from kkp.cli.common import OK, REFUSED, UNUSABLE, check_public_key, settings, write_private
from kkp.cli.stored_log import read_log
from kkp.errors import ConfigError


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of `kkp audit`."""
    prove = verbs.add_parser(
        "prove",
        help="prove to somebody else that a record is in the log",
        epilog="Exit codes: 0 done; 1 it can't be proven; 2 the log can't be read.",
    )
    prove.add_argument("record", metavar="CHAIN:SEQ", help="the record")
    prove.add_argument(
        "--checkpoint", type=_number, metavar="N", help="prove it by this one; else by the newest"
    )
    prove.add_argument(
        "--since", type=_number, metavar="N", help="prove, too, that this older one agrees with it"
    )
    prove.add_argument("--out", type=Path, metavar="FILE", help="write the proof to a new file")
    prove.set_defaults(command=_prove)
    verify = verbs.add_parser(
        "verify-proof",
        help="verify such a proof, or a file of `kkp audit prune --export`, offline",
        epilog="Exit codes: 0 what it says is in the log of that key; 1 it is not shown; 2 the file can't be "
        "read, or is no proof.",
    )
    verify.add_argument("file", type=Path, metavar="FILE", help="the proof")
    verify.add_argument(
        "--public-key",
        required=True,
        metavar="KEY",
        help="of the log; its operator prints it: `kkp audit key`",
    )
    verify.set_defaults(command=_verify)


def _number(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError("give the number of a checkpoint")
    return int(text)


def _prove(options: argparse.Namespace) -> int:
    try:
        chain, seq = read_cursor(options.record)
    except ValueError as error:
        raise ConfigError([f"{options.record}: {error}"]) from None
    try:
        proof = read_log(
            settings(),
            lambda opened: prove_record(
                opened.log, chain, seq, checkpoint=options.checkpoint, since=options.since
            ),
        )
    except UnreadableError as error:
        print(f"kkp: {error}", file=sys.stderr)
        return UNUSABLE
    except UnprovableError as error:
        print(f"kkp: {chain}:{seq} can't be proven: {error}", file=sys.stderr)
        return REFUSED
    if options.out is not None:
        write_private(options.out, [write_proof(proof)], "--out")
    else:
        sys.stdout.buffer.write(write_proof(proof))
    return OK


def _verify(options: argparse.Namespace) -> int:
    check_public_key(options.public_key)
    try:
        with options.file.open("rb") as file:
            first = file.readline(MAX_PROOF_BYTES + 1)
            proof = read_proof(first)
            proven = check_proof(proof, file, options.public_key)
    except (OSError, NoProofError) as error:
        print(f"kkp: {options.file} can't be read as a proof: {error}", file=sys.stderr)
        return UNUSABLE
    except DisprovedError as error:
        print(f"not proven: {error}")
        return REFUSED
    _tell(proof, proven)
    return OK


def _tell(proof: Proof, proven: Proven) -> None:
    if isinstance(proof, RecordProof):
        print(json.dumps(json.loads(proof.record), ensure_ascii=True, indent=2))
    if proven.since is not None:
        print(f"what {proven.since} lists of the chain is still there")
    records = f"{proven.chain}:{proven.first}"
    if proven.last > proven.first:
        records += f" to {proven.last}"
    line = f"proven: {records} in the log, by {proven.checkpoint}"
    print(line if line.isprintable() else ascii(line))  # a chain's id may try to drive the terminal
