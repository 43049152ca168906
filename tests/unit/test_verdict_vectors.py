"""The cases of verdicts that both SDKs are held to, read by KKP itself; each says where it differs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest

from kkp import jwk, tokens
from kkp.authn.dpop import Proofs
from kkp.errors import KKPError
from kkp.model import Credentials
from kkp.revocations import LIST_TYPE, ListClaims
from kkp.tokens import Claims, Confirmation
from tests import vectors
from tests.fakes.clock import FakeClock
from tests.promises import Recorder
from tests.vectors import __main__ as making

Case = dict[str, Any]

FILES: Final = {name: making.read(name) for name in making.FILES}
TOKENS: list[Case] = FILES["tokens_v1.json"]["cases"]
PROOFS: list[Case] = FILES["proofs_v1.json"]["cases"]
