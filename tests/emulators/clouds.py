"""Every cloud's emulator, started in one way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.emulators import aws, azure, gcp, vault


@dataclass(frozen=True)
class Cloud:
    """A running emulator, what KKP is given to reach it, and a key that it has."""

    uri: str
    key: str
    emulator: Any


# Is given a directory for its files, and the environment for the credentials.
Emulated: TypeAlias = Callable[[Path, pytest.MonkeyPatch], AbstractAsyncContextManager[Cloud]]


@asynccontextmanager
async def aws_kms(_directory: Path, _environ: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """Run AWS KMS."""
    async with aws.emulated() as emulator:
        yield Cloud(emulator.uri, "alias/orders", emulator)


@asynccontextmanager
async def vault_transit(_directory: Path, _environ: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """Run a Vault."""
    async with vault.emulated() as emulator:
        yield Cloud(emulator.uri, "orders", emulator)


@asynccontextmanager
async def cloud_kms(directory: Path, environ: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """Run Google's Cloud KMS."""
    async with gcp.cloud_kms(directory, environ) as emulator:
        yield Cloud(emulator.uri, "orders", emulator)


@asynccontextmanager
async def key_vault(directory: Path, environ: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """Run an Azure Key Vault."""
    async with azure.running(directory, environ) as emulator:
        yield Cloud(azure.URI, "orders", emulator)


CLOUDS: Mapping[str, Emulated] = {
    "aws": aws_kms,
    "vault": vault_transit,
    "gcp": cloud_kms,
    "azure": key_vault,
}
