import errno
import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.metrics import shared_metrics
from paywarden.scoring.metrics.shared_metrics import Counter, MetricsRegistry, render
from paywarden.scoring.metrics.worker_metrics import GarbagePauses, HttpMetrics, ScoringMetrics
from tests.services.product.processes import run_program


def samples(directory: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Returns everything that /metrics would show, parsed by Prometheus' own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render(directory).decode())
        for sample in family.samples
    }


def opened(directory: Path, worker: str) -> MetricsRegistry:
    registry = MetricsRegistry()
    registry.counter("things_total", "Things.", ("kind",), ("a",))
    registry.gauge("age_seconds", "Age.")
    registry.histogram("size", "Sizes.", bounds=(1, 2))
    registry.open(directory, worker)
    return registry


def things(registry: MetricsRegistry) -> Counter:
    return registry.counter("things_total", "Things.", ("kind",), ("a",))


COUNT = ("things_total", (("kind", "a"),))


def test_the_counts_of_all_workers_are_summed(tmp_path: Path) -> None:
    workers = [opened(tmp_path, name) for name in ("w0", "w1")]
    for count, worker in enumerate(workers, start=1):
        worker.counter("things_total", "Things.", ("kind",), ("a",)).add(count)
        worker.histogram("size", "Sizes.", bounds=(1, 2)).observe(count)
    shown = samples(tmp_path)
    assert shown[COUNT] == 3
    assert shown["size_sum", ()] == 3
    assert shown["size_count", ()] == 2
    for worker in workers:
        worker.close()


def test_buckets_are_cumulative_and_include_values_equal_to_their_bound(tmp_path: Path) -> None:
    registry = opened(tmp_path, "w0")
    size = registry.histogram("size", "Sizes.", bounds=(1, 2))
    for value in (0.5, 1, 1.5, 2, 7):
        size.observe(value)
    shown = samples(tmp_path)
    assert [shown["size_bucket", (("le", le),)] for le in ("1.0", "2.0", "+Inf")] == [2, 4, 5]
    assert size.count == 5
    registry.close()


@given(st.lists(st.integers(1, 1000)))
def test_counts_from_before_open_are_kept(counts: list[int]) -> None:
    registry = MetricsRegistry()
    counter = registry.counter("things_total", "Things.")
    for count in counts:
        counter.add(count)
    assert counter.value == sum(counts)


def test_a_worker_that_starts_again_goes_on_from_its_counts(tmp_path: Path) -> None:
    for expected in (5, 10, 15):
        registry = opened(tmp_path, "w0")
        registry.counter("things_total", "Things.", ("kind",), ("a",)).add(5)
        assert samples(tmp_path)[COUNT] == expected
        registry.close()


CRASHING = """
import os, signal, sys
from pathlib import Path
from typing import Any
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
registry = MetricsRegistry()
counter = registry.counter("things_total", "Things.", ("kind",), ("a",))
gauge = registry.gauge("age_seconds", "Age.")
registry.histogram("size", "Sizes.", bounds=(1, 2))
registry.open(Path(sys.argv[1]), "w0")
counter.add(7)
gauge.set(1.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_counts_of_a_killed_worker_stay_and_its_gauges_go(tmp_path: Path) -> None:
    assert run_program(CRASHING, str(tmp_path)).returncode == -signal.SIGKILL
    assert samples(tmp_path)[COUNT] == 7
    assert ("age_seconds", ()) not in samples(tmp_path)
    registry = opened(tmp_path, "w0")
    registry.counter("things_total", "Things.", ("kind",), ("a",)).add(1)
    assert samples(tmp_path)[COUNT] == 8
    registry.close()


def test_a_worker_that_was_killed_starts_again_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its payments waited for its numbers as long as the table of inodes was full."""
    registry = opened(tmp_path, "w0")
    things(registry).add(5)
    registry.close()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shared_metrics, "_begin", refuse)
    again = opened(tmp_path, "w0")
    things(again).add(1)
    assert samples(tmp_path)[COUNT] == 6
    with pytest.raises(Misconfigured, match="No space left on device"):
        opened(tmp_path, "w1")
    again.close()


def test_a_histogram_whose_bounds_changed_starts_anew_and_is_shown_once(tmp_path: Path) -> None:
    old = opened(tmp_path, "w0")
    old.histogram("size", "Sizes.", bounds=(1, 2)).observe(1)
    old.close()
    new = MetricsRegistry()
    size = new.histogram("size", "Sizes.", bounds=(1, 2, 3))
    new.open(tmp_path, "w0")
    size.observe(1)
    assert samples(tmp_path)["size_count", ()] == 1
    assert render(tmp_path).count(b'le="1.0"') == 1
    new.close()


def test_the_largest_gauge_of_the_live_workers_is_shown(tmp_path: Path) -> None:
    workers = [opened(tmp_path, name) for name in ("w0", "w1", "w2")]
    gauges = [worker.gauge("age_seconds", "Age.") for worker in workers]
    assert ("age_seconds", ()) not in samples(tmp_path)
    gauges[0].set(1.25)
    gauges[1].set(0.5)
    assert samples(tmp_path)["age_seconds", ()] == 1.25
    gauges[0].clear()
    assert samples(tmp_path)["age_seconds", ()] == 0.5
    for worker in workers:
        worker.close()


def test_two_processes_cannot_count_as_one_worker(tmp_path: Path) -> None:
    registry = opened(tmp_path, "w0")
    with pytest.raises(Misconfigured, match=f"another process counts as w0 in {tmp_path}: "):
        opened(tmp_path, "w0")
    registry.close()
    opened(tmp_path, "w0").close()


def test_a_directory_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="cannot use"):
        opened(tmp_path / "file", "w0")


@given(st.data())
def test_a_file_damaged_before_its_counts_keeps_no_worker_and_no_reader(data: st.DataObject) -> None:
    """Such a file ended its worker at each start, and with it all metrics of the host."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for worker in ("w0", "w1"):
            registry = opened(directory, worker)
            things(registry).add(5)
            registry.close()
        path = directory / "w0.metrics"
        content = bytearray(path.read_bytes())
        # Seven slots follow the header.
        at = data.draw(st.integers(0, len(content) - 8 * 7 - 1))
        if data.draw(st.booleans()):
            del content[at:]
        else:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert samples(directory)[COUNT] in (5, 10)
        registry = opened(directory, "w0")
        things(registry).add(1)
        assert samples(directory)[COUNT] in (6, 11)
        registry.close()


def test_a_file_that_holds_no_counts_is_named_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "w0.metrics").write_bytes(b"something else")
    assert render(tmp_path) == b""
    opened(tmp_path, "w0").close()
    assert "w0.metrics holds something else than this release counts: the counts begin at 0" in caplog.text
    assert samples(tmp_path)[COUNT] == 0


@pytest.mark.parametrize("what", ["pipe", "folder", "sparse", "link", "loop"])
def test_what_is_no_file_of_counts_costs_nobody_its_metrics(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One named pipe made /readyz of the host answer 500, and kept its worker from starting."""
    registries = [opened(tmp_path, worker) for worker in ("w0", "w1")]
    for registry in registries:
        things(registry).add(5)
        registry.close()
    path = tmp_path / "w0.metrics"
    path.unlink()
    match what:
        case "pipe":
            os.mkfifo(path, 0o600)
        case "folder":
            path.mkdir(mode=0o700)
        case "sparse":
            path.touch(0o600)
            os.truncate(path, 1 << 40)
        case "link":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
    for _ in range(3):
        assert samples(tmp_path)[COUNT] == 5
    assert caplog.text.count("w0.metrics are left out") == 1
    if what in ("link", "loop"):
        # A folder with a link in it is no folder of this user alone.
        path.unlink()
    if what == "folder":
        with pytest.raises(Misconfigured, match="Is a directory"):
            opened(tmp_path, "w0")
        return
    registry = opened(tmp_path, "w0")
    things(registry).add(1)
    assert samples(tmp_path)[COUNT] == 6
    registry.close()


def test_the_metrics_of_a_worker_are_there_from_the_start_at_zero(tmp_path: Path) -> None:
    registry = MetricsRegistry()
    http = HttpMetrics.declare(registry)
    scoring = ScoringMetrics.declare(registry, flags=["unknown_card"], entities=["card"])
    registry.open(tmp_path, "w0")
    http.requests["score", 429].add(1)
    http.seconds["score"].observe(0.000_07)
    scoring.decisions["review"].add(1)
    scoring.flags["unknown_card"].add(1)
    scoring.mirror_lookups["card", "miss"].add(1)
    scoring.mirror_age_seconds.set(2.5)
    scoring.score.observe(0.25)
    shown = samples(tmp_path)
    assert shown["paywarden_requests_total", (("code", "429"), ("route", "score"))] == 1
    assert shown["paywarden_requests_total", (("code", "200"), ("route", "score"))] == 0
    assert shown["paywarden_request_seconds_bucket", (("le", "0.0001"), ("route", "score"))] == 1
    assert shown["paywarden_request_seconds_bucket", (("le", "5e-05"), ("route", "score"))] == 0
    assert shown["paywarden_decisions_total", (("action", "review"),)] == 1
    assert shown["paywarden_flags_total", (("flag", "unknown_card"),)] == 1
    assert shown["paywarden_mirror_lookups_total", (("entity", "card"), ("result", "miss"))] == 1
    assert shown["paywarden_mirror_age_seconds", ()] == 2.5
    assert shown["paywarden_score_sum", ()] == 0.25
    registry.close()


def test_pauses_for_garbage_are_counted_while_they_are_watched() -> None:
    pauses = GarbagePauses(MetricsRegistry())
    gc.collect()
    assert pauses.seconds.count == 0
    pauses.watch()
    gc.collect()
    gc.collect()
    counted = pauses.seconds.count
    pauses.forget()
    gc.collect()
    assert pauses.seconds.count == counted >= 2


def test_another_process_sees_a_count_at_once(tmp_path: Path) -> None:
    registry = opened(tmp_path, "w0")
    registry.counter("things_total", "Things.", ("kind",), ("a",)).add(4)
    code = "import sys; from pathlib import Path; from paywarden.scoring.metrics.shared_metrics import render; "
    code += "sys.stdout.write(render(Path(sys.argv[1])).decode())"
    shown = run_program(code, str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert 'things_total{kind="a"} 4.0' in shown.stdout
    registry.close()
