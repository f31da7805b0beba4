"""`paywarden policy check`, and the example of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.ops.cli import cli
from tests.checkout import CHECKOUT

EXAMPLE = CHECKOUT / "ops" / "paywarden.toml"


def run(folder: Path, text: str, *arguments: str) -> Result:
    (folder / "some.toml").write_text(text, encoding="utf-8")
    asked = ["policy", "check", "--config", str(folder / "some.toml"), *arguments]
    return CliRunner().invoke(cli, asked, standalone_mode=False, env={"COLUMNS": "160"})


def check(folder: Path, text: str, *arguments: str) -> str:
    """Returns the output for a configuration without a fault."""
    result = run(folder, text, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def problems(folder: Path, text: str, *arguments: str) -> list[str]:
    """Returns the faults that are printed; there is no other output."""
    result = run(folder, text, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert all(line.startswith("paywarden: ") for line in lines)
    return [line.removeprefix("paywarden: ") for line in lines]


def example_tables(folder: Path) -> str:
    """The example's tables, which stand in comments there, as a reader would take them over."""
    section = EXAMPLE.read_text(encoding="utf-8").split("[policy]\n", 1)[1]
    tables = section[section.index("# [[policy.rules]]") :].split("\n\n")[0]
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in tables.splitlines())
    (folder / "own_shops.txt").write_text("merchant-0002\n", encoding="utf-8")
    return text.replace("@lists/own_shops.txt", f"@{folder / 'own_shops.txt'}")


def test_the_tables_of_the_example_are_right_and_printed(tmp_path: Path) -> None:
    output = check(tmp_path, "[policy]\nreview_at = 0.5\n" + example_tables(tmp_path))
    lines = [re.sub(r"[ │|]+", " ", line).strip() for line in output.splitlines()]
    assert 'online channel == "ecom" 0.2 0.7' in lines
    assert "(all others) 0.5 as the bundle says" in lines
    assert "gambling_burst mcc in lists.gambling and amount > 500_00 and card_count_1h >= 5 review at least" in lines
    assert "own_shops merchant_id in lists.own_shops and amount < 100_00 approve decides alone" in lines
    assert "gambling 3" in lines
    assert "own_shops 2" in lines
    assert "model_absent review" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[policy.rules]]\nname = "a"\nwhen = "amuont > 5"\naction = "review"',
            "policy.rules \"a\", character 1: there is no name 'amuont'; did you mean amount?",
        ),
        (
            "[policy]\nreview_at = 0.9\ndecline_at = 0.5",
            "policy.review_at (0.9) must not be above policy.decline_at (0.5)",
        ),
        (
            "[[policy.explored]]\nscore_from = 0.5\nshare = 0",
            "policy.explored share: wanted above 0 and at most 0.5, got 0",
        ),
        (
            "[[policy.explored]]\nscore_from = 0.5\nshare = 0.1\n[[policy.explored]]\nscore_from = 0.4\nshare = 0.1",
            "policy.explored score_from: wanted scores of 0 to 1 that ascend, got 0.4",
        ),
        ('[policy.lists]\na = ["@gone.txt"]', "policy.lists a: cannot read gone.txt: No such file or directory"),
        ('[[policy.segments]]\nname = "a"', '[policy] segments "a": when is missing'),
    ],
)
def test_one_fault_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert problems(tmp_path, text) == [message]


def test_a_bundle_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "", "--bundle", str(tmp_path / "gone"))
    assert "there is no manifest.json" in line


# One fault of every kind, in many sections; beside each line its error.
WRONG = """
colour = 3                                          # there is no section [colour]; there are admission,
[sevre]                                             # there is no section [sevre]; 'serve' may have been meant
port = 1
[http]
prot = 1                                            # [http] has no setting 'prot'; 'port' may have been meant
port = "80"                                         # [http] port: wanted a whole number, got str
backlog = 10                                        # [http] has no setting 'backlog'
connections_max = 0                                 # [http] connections_max: wanted at least 1, got 0
[outcomes]
window_days = 10                                    # [outcomes] window_days: wanted label_delay_days to 365, got 10
label_delay_days = 100
[kafka]
bootstrap = "nowhere"                               # [kafka] bootstrap: wanted host:port, got 'nowhere'
security_protocol = "sasl"                          # [kafka] security_protocol: wanted plaintext, ssl
[aerospike]
hosts = ["one"]                                     # [aerospike] hosts must be "host:port" each, got "one"
[store]
kind = "redis"                                      # [store] kind: wanted lmdb, aerospike or memory, got 'redis'
[stream]
freshness_exceptions = ["shop=1"]                   # [stream] freshness_exceptions: wanted ENTITY=MILLISECONDS
[companion]
variant = "a b"                                     # [companion] variant: wanted at most 64 letters
[features]
rates = "gone.csv"                                  # [features] rates: cannot read gone.csv: No such file or directory
[tls]
certificate = "server.pem"                          # [tls] key: wanted a file
[drift]
references = ["gone.npz"]                           # gone.npz
[drift_detection]
false_alarm_days = 0.0                              # false_alarm_days: wanted more than 0, got 0
[drift_alerts]
psi_warning = 0.5                                   # psi_warning
[drift_training]
psi_warning = 0.6                                   # drift_training.psi_warning, psi_critical: wanted at least 0.1
[tracing]
collector = "localhost:4318"                        # [tracing] collector: wanted http://
[exploration]
share = 0.6                                         # exploration.share: wanted 0 to 0.5, got 0.6
[costs]
fraud_loss_share = nan                              # [costs] fraud_loss_share: wanted
[mirror]
size_mb = 7                                         # [mirror] size_mb: wanted 8 to 65536, got 7
[overlay]
marks_max = 0                                       # [overlay] marks_max: wanted
[shards]
copies = 0                                          # copies: wanted at least 1, got 0
[policy]
review_at = 0.9                                     # policy.review_at (0.9) must not be above policy.decline_at (0.5)
decline_at = 0.5
on_mirror_absent = "aprove"                         # policy.on_mirror_absent: wanted one of approve, review, decline
[[policy.rules]]
name = "a"
when = "amuont > 5 or mcc in lists.shops"           # policy.rules "a", character 1: there is no name 'amuont'
action = "decine"                                   # policy.rules "a" action: wanted one of approve, review, decline
[[policy.segments]]
name = "s"
when = "scor > 0.5"                                 # policy.segments "s", character 1: there is no name 'scor'
decline_at = 2.0                                    # policy.segments "s" decline_at: wanted a score above 0
[[policy.segments]]
name = "s"                                          # policy.segments: there are two with the name "s"
when = "score > 0.5"
review_at = 0.4
[policy.lists]
shops = ["@gone1.txt", "@gone2.txt"]                # policy.lists shops: cannot read gone1.txt: No such file
"""


def test_every_fault_of_every_section_is_reported(tmp_path: Path) -> None:
    wanted = [line.partition("  # ")[2] for line in WRONG.splitlines() if "  # " in line]
    wanted.append("policy.lists shops: cannot read gone2.txt: No such file")
    found = problems(tmp_path, WRONG)
    assert [text for text in wanted if not any(text in line for line in found)] == []
    assert len(found) == len(wanted)


def test_a_setting_of_the_environment_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYWARDEN_HTTP_PORT", "eighty")
    assert problems(tmp_path, "[http]\nconnections_max = 0") == [
        "PAYWARDEN_HTTP_PORT: wanted a whole number",
        "[http] connections_max: wanted at least 1, got 0",
    ]


def test_the_whole_example_is_right() -> None:
    result = CliRunner().invoke(cli, ["policy", "check", "--config", str(EXAMPLE)], standalone_mode=False)
    assert result.stdout.endswith("every section is right\n")
