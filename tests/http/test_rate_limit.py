"""A caller that asks too often is refused before anything is decided, and its flood fills no disk."""

from __future__ import annotations

from pathlib import Path

from tests.harness import grant, running

# A burst is over long before its second request a second matters.
RATE, BURST = "1", "20"
REQUEST = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}


async def test_the_request_over_the_burst_is_refused_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC=RATE, KKP_CALLER_BURST=BURST) as kkp:
        key = await kkp.add_identity("orders", grant())
        answers = [await kkp.post("/token", REQUEST, credential=key) for _ in range(60)]
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) >= 20
        for answer in refused:
            assert (answer.status, answer.problem()) == (429, "rate_limited")
            assert answer.headers["Retry-After"] == "1"
            assert "decision_id" not in answer.json
        assert [answer.status for answer in answers[:20]] == [200] * 20


async def test_a_flood_leaves_no_record_of_its_own_but_one_count(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC=RATE, KKP_CALLER_BURST=BURST) as kkp:
        key = await kkp.add_identity("orders", grant())
        statuses = [(await kkp.post("/token", REQUEST, credential=key)).status for _ in range(80)]
    async with running(tmp_path) as kkp:
        records = await kkp.records()
    decided = [record for record in records if record.get("caller") == "orders" and "action" in record]
    assert len(decided) == statuses.count(200)
    (counted,) = [record for record in records if record["type"] == "rate_limited"]
    assert (counted["caller"], counted["count"]) == ("orders", statuses.count(429))


async def test_a_token_is_its_subjects_and_shares_its_bucket(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC=RATE, KKP_CALLER_BURST=BURST) as kkp:
        key = await kkp.add_identity("orders", grant())
        token = await kkp.token(key)
        for _ in range(60):
            await kkp.post("/token", REQUEST, credential=key)
        sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
        answers = [await kkp.post("/envelope/encrypt", sealing, credential=token) for _ in range(40)]
        assert "rate_limited" in {answer.problem() for answer in answers if answer.status != 200}


async def test_another_caller_and_whoever_is_unknown_are_answered_as_ever(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_CALLER_RATE_PER_SEC=RATE, KKP_CALLER_BURST=BURST) as kkp:
        orders, billing = (
            await kkp.add_identity("orders", grant()),
            await kkp.add_identity("billing", grant()),
        )
        for _ in range(60):
            await kkp.post("/token", REQUEST, credential=orders)
        assert (await kkp.post("/token", REQUEST, credential=billing)).status == 200
        unknown = [await kkp.post("/token", REQUEST, credential="kkp_sk_" + "x" * 43) for _ in range(40)]
        assert {answer.problem() for answer in unknown} == {"unauthenticated"}
