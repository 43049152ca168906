"""Seal a file of any size and open it again, in constant memory, without asyncio.

KKP_URL=… KKP_SERVICE_KEY=… python examples/files.py backup.tar
"""

import os
import sys
from pathlib import Path

from kkp_client import SyncKKPClient, SyncLocalEnvelope

plain = Path(sys.argv[1])
sealed, opened = plain.with_name(f"{plain.name}.kkp"), plain.with_name(f"{plain.name}.opened")

with SyncKKPClient(os.environ["KKP_URL"], os.environ["KKP_SERVICE_KEY"], audience="orders-db") as kkp:
    local = SyncLocalEnvelope(kkp)
    local.seal_file(plain, sealed, backend="aws", key_id="alias/orders", context={"backup": plain.name})
    local.open_file(sealed, opened)

print(f"{sealed.name} has {sealed.stat().st_size} bytes, {opened.name} {opened.stat().st_size}")
