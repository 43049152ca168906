"""What several workers measured, as one answer.

- Counters and histograms are sums. What a worker counted stays in them when it has ended, as far as it was
  told: a sum that fell would look like a restart of everything, and its rate be nonsense. A worker that ends
  in order tells its last; of one that is killed, what it counted since the metrics were last read is lost.
- Gauges are no sums: memory, open files, whether a check succeeds. Each worker's stands by itself, with its
  place as the label `worker`.
- When a series began (`…_created`) means nothing of a sum, and is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_SUMMED: Final = frozenset({"counter", "histogram"})
_Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
_Sums: TypeAlias = dict[_Series, float]


class Measured(Protocol):
    """Who measures."""

    @property
    def number(self) -> int:
        """Its place among the workers; whoever replaces it has the same."""


@final
class WorkerMetrics:
    """Keeps what workers told, and adds it up."""

    def __init__(self) -> None:
        self._told: dict[Measured, Sequence[Metric]] = {}
        self._sums_of_the_gone: _Sums = {}
        self._families: dict[str, Metric] = {}  # each that was ever told, for its type and its text
        self._ends = 0

    def note(self, worker: Measured, text: str) -> None:
        """Take what a worker measured since it began, in Prometheus's text format."""
        families = [f for f in text_string_to_metric_families(text) if not f.name.endswith("_created")]
        self._told[worker] = families
        self._families.update({family.name: family for family in families})

    def forget(self, worker: Measured) -> None:
        """Keep what a worker that has ended counted, and nothing else of it."""
        _add(self._sums_of_the_gone, self._told.pop(worker, ()))

    def count_end(self) -> None:
        """Count a worker that ended unasked, or could not be started."""
        self._ends += 1

    def render(self, serving: Collection[Measured]) -> bytes:
        """Return all of it in Prometheus's text format, with the gauges of these workers."""
        return generate_latest(_Families(tuple(self._merged(serving))))

    def _merged(self, serving: Collection[Measured]) -> Iterator[Metric]:
        sums = dict(self._sums_of_the_gone)
        for families in self._told.values():
            _add(sums, families)
        gauges = {worker: self._told[worker] for worker in serving if worker in self._told}
        for family in self._families.values():
            merged = Metric(family.name, family.documentation, family.type)
            if family.type in _SUMMED:
                merged.samples = list(_samples(sums, family.name))
            else:
                merged.samples = list(_labelled(gauges, family.name))
            yield merged
        yield GaugeMetricFamily("kkp_workers", "Workers that take connections.", value=len(serving))
        yield CounterMetricFamily(
            "kkp_worker_ends", "Workers that ended unasked, or could not be started.", value=self._ends
        )


class _Families(tuple[Metric, ...]):
    """Families, as the library wants to be handed them."""

    __slots__ = ()

    def collect(self) -> Iterable[Metric]:
        return self


def _add(sums: _Sums, families: Sequence[Metric]) -> None:
    for family in families:
        if family.type in _SUMMED:
            for sample in family.samples:
                series = (sample.name, tuple(sample.labels.items()))
                sums[series] = sums.get(series, 0.0) + sample.value


def _samples(sums: _Sums, family: str) -> Iterator[Sample]:
    names = {family + suffix for suffix in ("_total", "_bucket", "_count", "_sum")}
    for (name, labels), value in sums.items():
        if name in names:
            yield Sample(name, dict(labels), value)


def _labelled(gauges: Mapping[Measured, Sequence[Metric]], family: str) -> Iterator[Sample]:
    for worker, families in gauges.items():
        for found in families:
            if found.name == family:
                for name, labels, value, *_ in found.samples:
                    yield Sample(name, {**labels, "worker": str(worker.number)}, value)
