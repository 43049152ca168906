"""KKP=… AUDIENCE=… URL=… fastapi run fastapi_service.py: a service that tells callers who they are.

URL is what callers know the service by: what their DPoP proofs are for.
"""

import os
from typing import Annotated

from fastapi import Depends, FastAPI

from kkp_client import Claims, TokenVerifier
from kkp_client.guards.starlette import RefusedError, answer_refused, guard

verifier = TokenVerifier(os.environ["KKP"], audience=os.environ["AUDIENCE"])
caller = guard(verifier, url=os.environ["URL"])
app = FastAPI()
app.add_exception_handler(RefusedError, answer_refused)


@app.get("/who-am-i")
async def who_am_i(claims: Annotated[Claims, Depends(caller)]) -> dict[str, str]:
    """Answer the caller."""
    return {"subject": claims.sub, "asked_by": claims.asked_by}
