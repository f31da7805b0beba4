"""`paywarden doctor` without services: settings, host, bundle, access; what it prints, and its exit status."""

from __future__ import annotations

import errno
import json
import platform
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from confluent_kafka.cimpl import NewTopic

from paywarden.ops.cli import cli
from paywarden.ops.doctor import doctor_host as host
from paywarden.ops.doctor import kafka
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.shards import CardShards, HeldShards, ShardSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.services.certificates import Authority
from tests.worlds.operate.gateway_described import TEXT, write_description


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(config: str, *arguments: str) -> Result:
    Path("paywarden.toml").write_text(config, encoding="utf-8")
    return CliRunner().invoke(cli, ["doctor", *arguments])


def rows(config: str, *areas: str) -> list[dict[str, str]]:
    done = run(config, "--json", *(word for area in areas for word in ("--only", area)))
    found: list[dict[str, str]] = json.loads(done.stdout)
    assert done.exit_code == any(row["state"] == "error" for row in found)
    return found


def test_every_wrong_setting_is_an_error_of_its_own() -> None:
    done = run('[http]\nport = "x"\n[mirror]\nsize = 3\n', "--only", "settings")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.output.splitlines()[:2]] == [["error", "settings"]] * 2
    assert "[http] port" in done.output
    assert "'size'" in done.output


def test_a_folder_without_a_configuration_is_told(folder: Path) -> None:
    """It was said of paywarden.toml that all of its settings are right, also where there was none."""
    done = CliRunner().invoke(cli, ["doctor", "--only", "settings"])
    assert done.exit_code == 0
    assert f"there is no paywarden.toml in {folder}: defaults" in done.output


def test_an_area_that_cannot_be_reached_does_not_end_the_others() -> None:
    found = rows('[kafka]\nbootstrap = "127.0.0.1:1"\n[store]\nkind = "memory"\n', "kafka", "registry", "store")
    assert [(row["area"], row["state"]) for row in found] == [
        ("kafka", "error"),
        ("registry", "skipped"),
        ("store", "skipped"),
    ]
    assert "127.0.0.1:1" in found[0]["seen"]


@pytest.mark.parametrize(
    ("machine", "features", "state", "told"),
    [
        (
            "x86_64",
            {"avx512f": True, "avx2": True},
            "ok",
            "a model scores 16 rows together, as the processor has avx512f",
        ),
        ("x86_64", {"avx512f": False, "avx2": True}, "ok", "a model scores 4 rows together, as the processor has avx"),
        ("x86_64", {}, "warning", "the processor has none of avx512f, avx2, so a model scores 2 rows together"),
        ("aarch64", {}, "ok", "a model scores 2 rows together on aarch64"),
    ],
)
def test_what_the_processor_can_do_is_told(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: dict[str, bool], state: str, told: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "processor_features", lambda: features)
    (result,) = host.check_processor(read_source(None, {}))
    assert (result.state, result.seen.startswith(told)) == (state, True)


def test_a_mirror_on_a_disk_and_without_room_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_file_system", lambda _: "ext4")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 30))
    found = rows(f'[mirror]\npath = "{folder}/m"\nsize_mb = 2000\n', "host")
    warned = [row["seen"] for row in found if row["state"] == "warning"]
    assert any(f"[mirror] path: {folder}/m is on ext4" in seen for seen in warned)
    assert any(seen.startswith("[mirror] size_mb allows 2000 MiB") for seen in warned)


def test_shards_are_compared_with_the_mirror_and_the_gateway(folder: Path) -> None:
    (folder / "route-key").write_text("5d" * 32, encoding="ascii")
    text = TEXT + "[shards]\ncount = 16\n"
    write_description(folder, text)
    config = (
        f'[mirror]\npath = "{folder}/m"\n[shards]\ncount = 16\nhost = "scoring-1"\ncopies = 1\n'
        'hosts = ["scoring-1", "scoring-2"]\nroute_key_file = "route-key"\n'
    )

    def told() -> list[tuple[str, str]]:
        done = run(config, "--json", "--only", "host", "--gateway", "gateway.toml")
        found = json.loads(done.stdout)
        return [(row["state"], row["seen"]) for row in found if "shards]" in row["seen"]]

    table, gateway, mirror = told()
    settings = read_source("paywarden.toml").section("shards", ShardSettings)
    wanted = settings.wanted()
    assert table == (
        "ok",
        f"[shards]: scoring-1 holds {len(wanted)} of 16 shards by the table {settings.digest}, "
        "which each host must name",
    )
    assert gateway == ("ok", "[shards]: gateway.toml sends cards by the same table")
    assert mirror[0] == "skipped"
    digest = CardShards(16, bytes.fromhex("5d" * 32), {"card": 1}).digest
    for note, state in (
        (HeldShards("another", wanted, is_clean=True), "warning"),
        (HeldShards(digest, wanted - {min(wanted)}, is_clean=False), "warning"),
        (HeldShards(digest, wanted, is_clean=True), "ok"),
    ):
        writer = MirrorWriter(MirrorSettings(path=f"{folder}/m"))
        writer.note_shards(note)
        writer.close()
        assert told()[2][0] == state
    write_description(folder, text.replace("count = 16", "count = 8"))
    assert told()[1] == ("error", "[shards] count is 16, and 8 in gateway.toml")
    write_description(folder, text.replace("scoring-2", "scoring-9"))
    assert told()[1][0] == "error"


def test_a_bundle_that_is_missing_is_named() -> None:
    found = rows('[serve]\nbundle = "b"\nfallback_bundle = "c"\n', "bundle")
    assert [row["seen"] for row in found if row["state"] == "error"] == [
        "[serve] bundle: bundle b: there is no manifest.json",
        "[serve] fallback_bundle: bundle c: there is no manifest.json",
    ]


def test_tokens_are_read_and_never_shown(folder: Path) -> None:
    tokens = folder / "tokens"
    tokens.write_text("checkout:a-secret-of-20-letters\n", encoding="ascii")
    tokens.chmod(0o600)
    config = f'[auth]\ntokens_file = "{tokens}"\n'
    assert rows(config, "access")[0]["state"] == "ok"
    tokens.write_text("a-secret-of-20-letters without a name\n", encoding="ascii")
    done = run(config, "--only", "access")
    assert done.exit_code == 1
    assert "secret" not in done.output
    assert rows("", "access")[0]["state"] == "warning"


@pytest.mark.parametrize(("days", "state"), [(300, "ok"), (7, "warning"), (-2, "error")])
def test_a_certificate_that_expires_soon_is_a_warning(folder: Path, days: int, state: str) -> None:
    certificate, key = Authority(folder, days=days).sign("host")
    config = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    assert rows(config, "access")[0]["state"] == state


def test_a_certificate_that_is_not_valid_yet_is_an_error(folder: Path) -> None:
    certificate, key = Authority(folder, days=30, begins_in_days=2).sign("host")
    row = rows(f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n', "access")[0]
    assert row["state"] == "error"
    assert f"{certificate} is not valid before " in str(row)


def test_a_file_that_this_user_may_not_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", "/secret/mirror")

    monkeypatch.setattr(host, "_file_system", refused)
    (row,) = (row for row in rows("", "host") if row["state"] == "error")
    assert row["seen"] == "cannot look at /secret/mirror: Permission denied"


def test_an_identity_key_that_everybody_may_read_is_told(folder: Path) -> None:
    key = folder / "identity.key"
    key.write_text("5d" * 16, encoding="ascii")
    for mode, states in ((0o644, ["ok", "warning", "error"]), (0o600, ["ok", "error"])):
        key.chmod(mode)
        assert [row["state"] for row in rows(f'[features]\nidentity_key_file = "{key}"\n', "bundle")] == states


def test_a_broker_that_does_not_answer_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise BrokerUnavailable("no Kafka broker answers")

    def told(config: str) -> tuple[str, str]:
        (row,) = rows(f"[kafka]\n{config}\n", "kafka")
        return row["seen"], row["fix"]

    monkeypatch.setattr("paywarden.ops.doctor.kafka.require_broker", away)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        _, fix = told(f'bootstrap = "127.0.0.1:{port}"')
        assert fix.startswith(f"127.0.0.1:{port} takes connections, and does not speak plaintext")
    _, fix = told('bootstrap = "127.0.0.1:1,no..such.host:9092,kafka"')
    refused, unknown, wrong = fix.split("; ")
    assert refused == "127.0.0.1:1 takes no connection (Connection refused): is a broker there?"
    assert unknown.startswith("no address is known for no..such.host (")
    assert wrong == "[kafka] bootstrap: 'kafka' is not host:port"
    assert told('security_protocol = "ssl"\nssl_ca_location = "/no/ca.pem"') == (
        "[kafka] ssl_ca_location: cannot read /no/ca.pem: No such file or directory",
        "give the right path",
    )


@pytest.mark.parametrize(
    ("replicas", "in_sync", "leader", "state", "told"),
    [
        (3, 3, True, "", ""),
        (3, 2, True, "warning", "payments: partitions 0 lack copies"),
        (3, 1, False, "error", "payments: partitions 0 have no leader"),
        (1, 1, True, "warning", "payments has one copy, and a broker that is lost takes acknowledged records with it"),
    ],
)
def test_copies_that_are_missing_are_told(replicas: int, in_sync: int, leader: bool, state: str, told: str) -> None:
    """The answer of one of three brokers about a topic with one partition."""
    partition = SimpleNamespace(
        id=0, replicas=[*range(replicas)], isr=[*range(in_sync)], leader=object() if leader else None
    )
    described = SimpleNamespace(partitions=[partition], authorized_operations=None)
    results = list(kafka._topic_results(NewTopic("payments", 1), described, {}, brokers=3))
    assert [(result.state, result.seen) for result in results] == ([(state, told)] if state else [])
