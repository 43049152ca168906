"""AWS's token service, as far as web identity needs it, and the environment that leads to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.emulators.aws import CREDENTIALS, NO_AMBIENT
from tests.emulators.listener import Answer, Said, always

_XMLNS = 'xmlns="https://sts.amazonaws.com/doc/2011-06-15/"'


def granting(lifetime_seconds: float = 3600.0) -> Answer:
    """Give credentials that end then."""
    end = (datetime.now(UTC) + timedelta(seconds=lifetime_seconds)).isoformat()
    action = "AssumeRoleWithWebIdentity"
    body = (
        f"<{action}Response {_XMLNS}><{action}Result><Credentials><AccessKeyId>ASIAEMULATED</AccessKeyId>"
        f"<SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>"
        f"<Expiration>{end}</Expiration></Credentials></{action}Result></{action}Response>"
    )
    return always(Said(200, body.encode(), {"Content-Type": "text/xml"}))


def refusing(code: str, status: int) -> Answer:
    """Answer with an error as STS writes it."""
    body = (
        f"<ErrorResponse {_XMLNS}><Error><Type>Sender</Type><Code>{code}</Code>"
        "<Message>hunter2 is not allowed</Message></Error></ErrorResponse>"
    )
    return always(Said(status, body.encode(), {"Content-Type": "text/xml"}))


def environment(directory: Path, url: str) -> Mapping[str, str]:
    """Return the variables of a process with a web identity, whose token service is here."""
    token = directory / "web-identity-token"
    token.write_text("e30.e30.signature")
    return {
        **NO_AMBIENT,
        **dict.fromkeys(CREDENTIALS, ""),
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/kkp",
        "AWS_ROLE_SESSION_NAME": "kkp",
        "AWS_ENDPOINT_URL_STS": url,
    }
