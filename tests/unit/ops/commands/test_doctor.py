"""`paywarden doctor` without services: settings, host, bundle, access; what it prints, and its exit status."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.ops.cli import cli
from paywarden.ops.doctor import host
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter
from paywarden.scoring.state.shards import CardShards, HeldShards, ShardSettings
from tests.services.certificates import Authority
from tests.worlds.gateway_described import TEXT, write_description


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


def test_an_area_that_cannot_be_reached_does_not_end_the_others() -> None:
    found = rows('[kafka]\nbootstrap = "127.0.0.1:1"\n[store]\nkind = "memory"\n', "kafka", "registry", "store")
    assert [(row["area"], row["state"]) for row in found] == [
        ("kafka", "error"),
        ("registry", "skipped"),
        ("store", "skipped"),
    ]
    assert "127.0.0.1:1" in found[0]["seen"]


def test_open_files_are_counted_before_a_worker_needs_them() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert rows("[http]\nconnections_max = 10\n[grpc]\nenabled = false\n", "host")[0]["state"] == "ok"
    (first, *_) = rows(f"[http]\nconnections_max = {hard}\n", "host")
    assert first["state"] == "error"
    assert f"the limit is {hard}" in first["seen"]


def test_a_mirror_on_a_disk_and_without_room_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_file_system", lambda _: "ext4")
    found = rows(f'[mirror]\npath = "{folder}/m"\nsize_mb = 100000000\n', "host")
    warned = [row["seen"] for row in found if row["state"] == "warning"]
    assert any(f"[mirror] path: {folder}/m is on ext4" in seen for seen in warned)
    assert any(seen.startswith("[mirror] size_mb allows 100000000 MiB") for seen in warned)


def test_the_decision_cache_of_a_running_host_is_no_fault(folder: Path) -> None:
    """It is a file that nobody can execute, which used to count as one that nobody can write."""
    cache = folder / "answered"
    cache.touch(mode=0o600)
    found = rows(
        f'[answered]\npath = "{cache}"\n[mirror]\npath = "{folder}/m"\n[serve]\nmetrics = "{folder}/n"\n', "host"
    )
    assert [row["seen"] for row in found if row["state"] == "error" and "answered" in row["seen"]] == []


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


def test_the_nearest_mount_says_what_a_path_is_on() -> None:
    assert host._file_system(Path("/proc/self")) == "proc"
    assert host._file_system(Path("/nothing/is/here")) == host._file_system(Path("/"))
