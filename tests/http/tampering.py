"""Small changes to what is sent, many requests at a time, and what all their answers have in common."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tests.harness import Answer


def decode(text: str) -> bytes:
    """Decode base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(data: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def flips(data: bytes) -> Iterator[bytes]:
    """Flip each bit, one at a time."""
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def text_flips(text: str) -> Iterator[str]:
    """Flip each of the seven bits of every ASCII letter."""
    for place, letter in enumerate(text):
        for bit in range(7):
            yield text[:place] + chr(ord(letter) ^ 1 << bit) + text[place + 1 :]


async def all_of(requests: Iterator[Any]) -> list[Answer]:
    """Send many requests, some at a time."""
    limit = asyncio.Semaphore(32)

    async def one(request: Any) -> Answer:
        async with limit:
            answer: Answer = await request
            return answer

    return await asyncio.gather(*(one(request) for request in requests))


def without_ids(answer: Answer) -> dict[str, Any]:
    """Return a problem document without what differs from one request to the next."""
    return {name: value for name, value in answer.json.items() if name not in {"request_id", "decision_id"}}


def only_answer(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the one document that all answers are, but for their ids."""
    documents = {json.dumps(without_ids(answer)): without_ids(answer) for answer in answers}
    assert len(documents) == 1, documents
    return next(iter(documents.values()))
