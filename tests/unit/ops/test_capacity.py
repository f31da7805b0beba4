"""The plan of a deployment: what grows with what, and what it warns of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import strategies as st

from paywarden.ops.capacity.coefficients import PARTS, Coefficients
from paywarden.ops.capacity.measured_costs import MEASURED
from paywarden.ops.capacity.plan import KeptBytes, Requirements, busy_cores, plan
from paywarden.ops.commands.run.capacity import capacity
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


def line(fixed: float, marginal_us: float) -> tuple[tuple[float, float], ...]:
    return tuple((rate, fixed + marginal_us * rate / 1e6) for rate in (0.0, 100.0, 2000.0))


COSTS = Coefficients(
    curves={
        "serve": line(0.01, 30),
        "companion": line(0.02, 100),
        "stream": line(0.03, 200),
        "kafka": line(0.1, 150),
    },
    cpu_us_per_profile=10,
    cpu_us_per_skipped_profile=3,
    kafka_bytes_in_per_payment=1000,
    kafka_bytes_out_per_payment=1500,
)
KEPT = KeptBytes(
    kinds=3,
    sharded_kinds=1,
    partitions=12,
    kafka_replication=3,
    kafka_days=100,
    store_replication=2,
    store_days=120,
    answered_window_s=600,
    answered_slots=16_777_216,
    outbox_bytes_max=1 << 30,
)
rates = st.floats(0, 1e5)


def test_every_host_applies_all_profiles_and_ships_its_own_decisions() -> None:
    one, four = (busy_cores(COSTS, Requirements(1000, 1e6, hosts), 3) for hosts in (1, 4))
    # Three profiles of 10 us for each payment and host; the other 70 us only once.
    assert four["companion"] - one["companion"] == pytest.approx(3 * (0.02 + 0.03))
    assert four["serve"] - one["serve"] == pytest.approx(3 * 0.01)
    assert four["stream"] == one["stream"]


def test_a_sharded_host_needs_its_cards_and_all_that_is_no_card() -> None:
    asked = Requirements(1000, 1e7, 12, sharded_share=0.8, copies=2)
    assert asked.held_share == pytest.approx(1.2 * 2 / 12)
    assert asked.mirror_profiles == pytest.approx(1e7 * (0.2 + 0.8 * 0.2))
    whole, sharded = (plan(COSTS, each, KEPT) for each in (replace(asked, sharded_share=0.0), asked))
    assert whole.host_memory_bytes - sharded.host_memory_bytes == pytest.approx(1e7 * 0.64 * 410, abs=1)
    # 80 % of the cards' profiles cost 3 us in place of 10, on each host.
    saved = whole.needs["companion"].busy_cores - sharded.needs["companion"].busy_cores
    assert saved == pytest.approx(12 * 0.8 * 1000 * 7e-6)
    # Two hosts hold every card.
    assert Requirements(1000, 1e7, 2, sharded_share=0.8).mirror_profiles == 1e7
    with pytest.raises(Misconfigured, match="sharded share: wanted 0 to 1"):
        Requirements(1000, 1e7, 2, sharded_share=1.5)


def test_what_more_hosts_cannot_carry_is_said() -> None:
    assert plan(COSTS, Requirements(1000, 1e6, 2), KEPT).warnings == ()
    warnings = plan(COSTS, Requirements(200_000, 1e6, 40), KEPT).warnings
    assert any("every host applies the whole changelog" in warning for warning in warnings)
    assert any("64 partitions at most" in warning for warning in warnings)
    (partitions,) = plan(COSTS, Requirements(40_000, 1e6, 40), KEPT).warnings[1:]
    assert "more than the 12 partitions" in partitions
    (answered,) = plan(
        replace(COSTS, cpu_us_per_profile=0), Requirements(1000, 1e6, 1), replace(KEPT, answered_slots=1000)
    ).warnings
    assert "payments_max" in answered


def figures() -> dict[str, float]:
    """The figures of perf.whole for rates of 0, 100 and 900; the last one fills the machine."""
    cores = {0: 0.1, 100: 0.2, 900: 0.4}
    return {f"cores_{rate}_{part}": each for rate, each in cores.items() for part in PARTS} | {
        "machine_cores": 2,
        "cores_100": 0.8,
        "p99_ms_100": 3.0,
    }


def test_figures_of_benchmarks_replace_those_of_before(tmp_path: Path) -> None:
    whole, companion = tmp_path / "whole.json", tmp_path / "companion.json"
    whole.write_text(json.dumps(figures()))
    companion.write_text(json.dumps({"cpu_us_per_profile": 7.5, "profiles": 10}))
    found = Coefficients.read([whole, companion], COSTS)
    # At 900 a second the processes kept 1.6 of 2 cores busy: what each takes there says nothing.
    assert found == replace(COSTS, curves=dict.fromkeys(PARTS, ((0.0, 0.1), (100.0, 0.2))), cpu_us_per_profile=7.5)
    assert Coefficients.read([], MEASURED) == MEASURED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "none of the figures"),
        ("[]", "no JSON object"),
        ("{", "no JSON of a benchmark"),
        ('{"cpu_us_per_profile": "7"}', "cpu_us_per_profile: wanted a number"),
        ('{"cpu_us_per_profile": NaN}', "cpu_us_per_profile: wanted a number"),
        ('{"cpu_us_per_profile": -1}', "cpu_us_per_profile: wanted a number"),
        ('{"cores_0_serve": 1}', "cores_0_companion is missing"),
        (json.dumps({f"cores_5_{part}": 1 for part in PARTS}), "wanted cores at 0"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "whole.json"
    file.write_text(content)
    with pytest.raises(Misconfigured, match=reason):
        Coefficients.read([file], COSTS)


@pytest.mark.parametrize(
    "asked", [(-1, 1, 1, 0.5), (1, -1, 1, 0.5), (1, 1, 0, 0.5), (1, 1, 1, 0), (float("nan"), 1, 1, 1)]
)
def test_a_deployment_that_cannot_be_is_refused(asked: tuple[float, float, int, float]) -> None:
    with pytest.raises(Misconfigured, match="wanted"):
        Requirements(*asked)


def test_the_command_takes_what_is_kept_from_the_settings() -> None:
    asked = ["--rate", "1000", "--entities", "5e7", "--hosts", "3", "--json"]
    told = CliRunner().invoke(capacity, asked, obj=Source({"topics": {"partitions": 24}}, {}))
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["partitions"] == 24
    assert set(found["needs"]) == {*PARTS, "store"}
    assert found["needs"]["companion"]["processes"] == 3
    table = CliRunner().invoke(capacity, asked[:-1], obj=Source({}, {}))
    assert "each scoring host needs 2" in table.stdout
