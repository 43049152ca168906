"""Seal, move and open many values at once: each has its own result, or its own error.

KKP_URL=… KKP_SERVICE_KEY=… python examples/many.py
"""

import os

from kkp_client import EncryptItem, KKPError, SyncKKPClient

rows = [f"row {number}" for number in range(100)]

with SyncKKPClient(os.environ["KKP_URL"], os.environ["KKP_SERVICE_KEY"], audience="orders-db") as kkp:
    sealed = kkp.encrypt_many(
        [EncryptItem(backend="aws", key_id="alias/orders", plaintext=row) for row in rows]
    )
    envelopes = [each for each in sealed if not isinstance(each, KKPError)]
    moved = kkp.rewrap_many(envelopes, backend="gcp", key_id="orders")
    for opened in kkp.decrypt_many([each for each in moved if not isinstance(each, KKPError)])[:3]:
        print(opened.code if isinstance(opened, KKPError) else opened.text)
