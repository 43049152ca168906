"""What several workers measured is added up, and falls for nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kkp.metrics import Metrics
from kkp.workers.metrics import WorkerMetrics


@dataclass(frozen=True)
class Worker:
    number: int
    pid: int


ONE, TWO, ONE_AGAIN = Worker(1, 100), Worker(2, 101), Worker(1, 102)


def measured(*, requests: int = 0, ready: bool = True) -> str:
    metrics = Metrics()
    for _ in range(requests):
        metrics.request("POST", "/token", 200, 0.002)
    metrics.readiness({"policy": ready})
    return metrics.render().decode()


def series(text: bytes, name: str) -> dict[str, float]:
    found = re.findall(rf"^({name}(?:{{.*}})?) (\S+)$", text.decode(), re.MULTILINE)
    return {full: float(value) for full, value in found}


REQUESTS = 'kkp_requests_total{method="POST",route="/token",status="200"}'


def test_counters_and_histograms_are_sums() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(requests=3))
    workers.note(TWO, measured(requests=4))
    text = workers.render([ONE, TWO])
    assert series(text, "kkp_requests_total") == {REQUESTS: 7}
    labels = 'method="POST",route="/token"'
    assert series(text, "kkp_request_seconds_count") == {f"kkp_request_seconds_count{{{labels}}}": 7}
    buckets = series(text, "kkp_request_seconds_bucket")
    assert buckets[f'kkp_request_seconds_bucket{{le="0.001",{labels}}}'] == 0
    assert buckets[f'kkp_request_seconds_bucket{{le="0.0025",{labels}}}'] == 7
    assert buckets[f'kkp_request_seconds_bucket{{le="+Inf",{labels}}}'] == 7
    (seconds,) = series(text, "kkp_request_seconds_sum").values()
    assert abs(seconds - 7 * 0.002) < 1e-9


def test_a_series_that_only_one_worker_knows_is_told_as_it_is() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured())
    workers.note(TWO, measured(requests=1))
    assert series(workers.render([ONE, TWO]), "kkp_requests_total") == {REQUESTS: 1}


def test_gauges_stand_for_themselves() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(ready=True))
    workers.note(TWO, measured(ready=False))
    text = workers.render([ONE, TWO])
    assert series(text, "kkp_ready") == {
        'kkp_ready{check="policy",worker="1"}': 1,
        'kkp_ready{check="policy",worker="2"}': 0,
    }
    assert series(text, "process_resident_memory_bytes").keys() == {
        'process_resident_memory_bytes{worker="1"}',
        'process_resident_memory_bytes{worker="2"}',
    }


def test_what_a_worker_counted_stays_when_it_has_ended_and_its_gauges_go() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(requests=3))
    workers.note(TWO, measured(requests=4))
    workers.forget(ONE)
    workers.note(ONE_AGAIN, measured(requests=2))
    text = workers.render([ONE_AGAIN, TWO])
    assert series(text, "kkp_requests_total") == {REQUESTS: 9}
    assert len(series(text, "kkp_ready")) == 2
    workers.forget(ONE_AGAIN)
    workers.forget(TWO)
    text = workers.render([])
    assert series(text, "kkp_requests_total") == {REQUESTS: 9}
    assert series(text, "kkp_ready") == {}


def test_a_worker_that_leaves_still_counts_and_shows_no_gauge_beside_its_successor() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(requests=3))
    workers.note(ONE_AGAIN, measured(requests=2))
    text = workers.render([ONE_AGAIN])
    assert series(text, "kkp_requests_total") == {REQUESTS: 5}
    assert series(text, "kkp_ready") == {'kkp_ready{check="policy",worker="1"}': 1}


def test_what_is_told_twice_counts_once() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(requests=3))
    workers.note(ONE, measured(requests=5))
    assert series(workers.render([ONE]), "kkp_requests_total") == {REQUESTS: 5}


def test_who_ended_without_a_word_leaves_nothing() -> None:
    workers = WorkerMetrics()
    workers.forget(ONE)
    workers.count_end()
    text = workers.render([])
    assert series(text, "kkp_workers") == {"kkp_workers": 0}
    assert series(text, "kkp_worker_ends_total") == {"kkp_worker_ends_total": 1}


def test_when_a_series_began_is_left_out() -> None:
    workers = WorkerMetrics()
    workers.note(ONE, measured(requests=1))
    assert b"_created" not in workers.render([ONE])
