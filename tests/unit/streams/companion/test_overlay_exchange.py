"""Rows of the overlay between two hosts, over sockets: what arrives, what is dropped, and what is counted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.kernel import UNKNOWN_AMOUNT
from paywarden.features.profiles.payment_tags import PaymentTags
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state import overlay_table as tables
from paywarden.scoring.state.overlay import OverlaySettings, prepare
from paywarden.scoring.state.overlay_rows import ROWS_AT_ONCE, Drop, RowDatagrams, SharedRows
from paywarden.streams.companion import overlay_exchange
from paywarden.streams.companion.overlay_exchange import ExchangeMetrics, OverlayExchange
from tests.patience import PATIENCE_S
from tests.worlds.small import small_history

NOW_MS = 1_767_866_400_000
PLAN = small_history.engine().plan
ENTITIES = PLAN.entity_count


@dataclass
class Host:
    """A host's table and its companion's exchange, whose turns a test takes."""

    settings: OverlaySettings
    registry: CollectorRegistry
    rows: SharedRows
    exchange: OverlayExchange

    def answer(self, *names: bytes) -> None:
        """Add payments to the table, as a worker does."""
        attributes = np.zeros((len(names), PLAN.row_width), dtype=np.int64)
        attributes[:, 0] = NOW_MS
        # The currency of the first one has no rate.
        attributes[0, 1] = UNKNOWN_AMOUNT
        hashes = np.arange(1, len(names) * ENTITIES + 1)
        tags = np.array(PaymentTags(PLAN.key).of_all(names))
        table, numbers = self.rows._table, np.zeros(tables.NUMBER_COUNT, dtype=np.int64)
        assert table is not None
        numbers[tables.LIFE_MS] = self.settings.lifetime_ms
        tables.add_all(
            table, self.rows._shape, attributes, hashes, tags, numbers, self.rows._clock_ms(), 0, 1 << 60, tables.OWN
        )
        assert numbers[tables.ADDED] == len(names)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"paywarden_companion_overlay_{name}_total", labels) or 0.0


def made_host(folder: Path, name: str, **chosen: object) -> Host:
    settings = OverlaySettings(
        enabled=True,
        exchange=True,
        path=str(folder / name),
        payments_max=2048,
        exchange_address="127.0.0.1:0",
        **chosen,  # type: ignore[arg-type]
    )
    prepare(settings, PLAN)
    registry, rows = CollectorRegistry(), SharedRows(settings, PLAN, clock_ms=lambda: 5_000)
    exchange = OverlayExchange(settings, PLAN, ExchangeMetrics(registry), rows=rows, now_ms=lambda: NOW_MS)
    assert rows.look()
    return Host(settings, registry, rows, exchange)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts. The first one tells the second, itself, and a host that is away; the second tells the first."""
    second = made_host(tmp_path, "second")
    first = made_host(tmp_path, "first")
    own, other = (f"127.0.0.1:{host.exchange.address[1]}" for host in (first, second))
    # Nobody listens at port 9, and no name ends with .invalid.
    first.exchange._settings = replace(
        first.settings, peers=(other, own, "127.0.0.1:9", "nowhere.invalid:1", "no..name:1")
    )
    second.exchange._settings = replace(second.settings, peers=(own,))
    yield first, second
    for host in (first, second):
        host.exchange._socket.close()


def test_a_payment_of_one_host_is_pending_on_the_other_and_goes_nowhere_from_there(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    first.answer(b"a", b"b")
    assert first.exchange.turn(0)
    assert not second.exchange.turn(1.0)
    assert (first.counted("rows_sent"), second.counted("rows_received"), second.counted("rows_sent")) == (2, 2, 0)
    first.exchange.turn(1.0)
    assert first.counted("datagrams_dropped", reason="own") == 1
    table = second.rows._table
    assert table is not None
    assert table[tables.NEXT_AT] == 2


def test_a_name_server_that_hangs_holds_up_no_row_and_no_end(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names were looked up between two rounds: other hosts' rows were lost, and the companion's end hung."""
    first, second = hosts
    answers = Event()
    find = overlay_exchange._addresses_of

    def hangs(*arguments: Any) -> list[tuple[str, int]]:
        assert answers.wait(PATIENCE_S)
        return find(*arguments)

    monkeypatch.setattr(overlay_exchange, "_addresses_of", hangs)
    monkeypatch.setattr(overlay_exchange, "ANSWER_S", 0.01)
    first.exchange._peers = [second.exchange.address]
    first.answer(b"a")
    assert first.exchange.turn(0)
    assert not second.exchange.turn(1.0)
    assert (first.counted("rows_sent"), second.counted("rows_received")) == (1, 1)
    with first.exchange:
        first.answer(b"b")
    assert not answers.is_set()
    answers.set()


def test_a_host_with_a_wrong_clock_adds_nothing_and_says_so(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    second.exchange._now_ms = lambda: NOW_MS + 2 * second.settings.lifetime_ms
    first.answer(b"a")
    first.exchange.turn(0)
    second.exchange.turn(1.0)
    assert (second.counted("rows_received"), second.counted("rows_refused")) == (0, 1)


def test_a_host_whose_rows_count_from_one_again_goes_on_telling(hosts: tuple[Host, Host]) -> None:
    first, _ = hosts
    first.answer(*(b"%d" % number for number in range(20)))
    first.exchange.turn(0)
    # The number of the newest row was damaged, and a worker has mended it.
    table = first.rows._table
    assert table is not None
    table[tables.NEXT_AT] = 0
    table[tables.HEAD_SIZE :] = 0
    first.exchange.turn(0)
    first.answer(b"later")
    first.exchange.turn(0)
    assert first.counted("rows_sent") == 21


def test_bytes_are_bounded_and_what_is_not_told_is_counted(hosts: tuple[Host, Host]) -> None:
    first, _ = hosts
    first.answer(*(b"%d" % number for number in range(2 * ROWS_AT_ONCE + 5)))
    assert first.exchange.turn(0)
    assert not first.exchange.turn(0)
    assert (first.counted("rows_sent"), first.counted("rows_missed")) == (ROWS_AT_ONCE, ROWS_AT_ONCE + 5)


def test_hostile_broken_and_repeated_datagrams_are_dropped_by_reason(hosts: tuple[Host, Host]) -> None:
    _, second = hosts
    rows = np.ones((3, 1 + ENTITIES + PLAN.row_width), dtype=np.int64) * 7
    (good,) = RowDatagrams(PLAN).of_rows(rows[:1])
    other_key = replace(PLAN, key=IdentityKey(1, 2))
    other_catalogue = replace(PLAN, digest="0" * len(PLAN.digest))
    negative, without_tag = rows[:1].copy(), rows[:1].copy()
    negative[0, -1], without_tag[0, 0] = -1, 1
    sent = [
        (b"", Drop.FOREIGN),
        (b"\xff" * 60_000, Drop.FOREIGN),
        (good[:-1], Drop.FOREIGN),
        (good + b"\0", Drop.FOREIGN),
        (bytes([good[0]]) + bytes([good[1] ^ 1]) + good[2:], Drop.FOREIGN),
        (next(RowDatagrams(other_key).of_rows(rows)), Drop.FOREIGN),
        (next(RowDatagrams(other_catalogue).of_rows(rows)), Drop.CATALOGUE),
        (next(RowDatagrams(PLAN).of_rows(rows[:1, :-1])), Drop.BROKEN),
        (next(RowDatagrams(PLAN).of_rows(negative)), Drop.BROKEN),
        (next(RowDatagrams(PLAN).of_rows(without_tag)), Drop.BROKEN),
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for datagram, reason in sent:
            before = second.counted("datagrams_dropped", reason=reason.value)
            stranger.sendto(datagram, second.exchange.address)
            second.exchange.turn(1.0)
            assert second.counted("datagrams_dropped", reason=reason.value) == before + 1
    assert second.counted("rows_received") == 0


def test_a_flood_of_datagrams_that_are_dropped_takes_little_time(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = hosts
    rests: list[float] = []
    monkeypatch.setattr(second.exchange._stop, "wait", rests.append)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for number in range(300):
            stranger.sendto(b"PWR1" + bytes(number), second.exchange.address)
        second.exchange.turn(1.0)
    assert len(rests) == 1
    second.exchange.turn(1.0)
    assert second.counted("datagrams_dropped", reason="foreign") == 300
    # What hosts of the deployment send is read without a rest.
    first.answer(*(b"%d" % number for number in range(ROWS_AT_ONCE)))
    first.exchange.turn(0)
    second.exchange.turn(1.0)
    assert (second.counted("rows_received"), len(rests)) == (ROWS_AT_ONCE, 1)


def test_a_repeated_or_late_datagram_is_dropped_and_a_restarted_host_is_heard() -> None:
    rows = np.ones((60, 1 + ENTITIES + PLAN.row_width), dtype=np.int64) * 7
    hearer, teller = RowDatagrams(PLAN), RowDatagrams(PLAN)
    first, second, *_ = teller.of_rows(rows)
    assert len(first) <= 1400
    assert not isinstance(hearer.read(second), Drop)
    assert [hearer.read(late) for late in (second, first)] == [Drop.REPEATED, Drop.REPEATED]
    (again,) = RowDatagrams(PLAN).of_rows(rows[:1])
    assert not isinstance(hearer.read(again), Drop)


def test_a_worker_killed_while_it_writes_holds_up_its_rows_for_a_second_only(tmp_path: Path) -> None:
    host = made_host(tmp_path, "host")
    now_ms = 5_000
    host.rows._clock_ms = lambda: now_ms
    table = host.rows._table
    assert table is not None
    tables._take_row(table, host.rows._shape, now_ms, host.settings.lifetime_ms)
    host.answer(b"after")
    assert len(host.rows.take_new()) == 0
    now_ms += 1001
    assert len(host.rows.take_new()) == 1
    host.exchange._socket.close()


def test_a_failure_is_counted_and_the_thread_ends_when_it_is_told(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = hosts
    has_failed = Event()

    def fails() -> None:
        has_failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(first.rows, "take_new", fails)
    with first.exchange:
        assert has_failed.wait(PATIENCE_S)
    assert first.counted("exchange_failures") >= 1
    assert not first.exchange._thread.is_alive()
    assert first.exchange._socket.fileno() == -1


@pytest.mark.parametrize("address", ["nowhere", ":7946", "host:", "host:x", "host:70000"])
def test_a_wrong_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(Misconfigured, match=r"\[overlay\] exchange_address: wanted host:port"):
        OverlaySettings(exchange_address=address)
    with pytest.raises(Misconfigured, match=r"\[overlay\] peers: wanted host:port"):
        OverlaySettings(peers=(address,))


def test_an_address_in_use_is_said_at_the_start(tmp_path: Path) -> None:
    host = made_host(tmp_path, "host")
    taken = replace(host.settings, exchange_address=f"127.0.0.1:{host.exchange.address[1]}")
    with pytest.raises(Misconfigured, match="exchange_address: cannot listen"):
        OverlayExchange(taken, PLAN, ExchangeMetrics(CollectorRegistry()))
    host.exchange._socket.close()
