"""`paywarden admin dead-letters`: what it understands, and what it refuses before it talks to a broker."""

from __future__ import annotations

import pytest

from paywarden.ops.commands.state.dead_letters import _since_ms
from paywarden.ops.times import spoken
from tests.services.product.processes import run_paywarden

NOW_MS = 1_714_564_800_000  # 2024-05-01T12:00:00Z


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("90s", NOW_MS - 90_000),
        ("10m", NOW_MS - 600_000),
        ("2h", NOW_MS - 7_200_000),
        ("1d", NOW_MS - 86_400_000),
        ("2024-05-01T12:00:00Z", NOW_MS),
        ("2024-05-01T12:00:00", NOW_MS),
        ("2024-05-01T14:00:00+02:00", NOW_MS),
        ("2024-05-01", NOW_MS - 43_200_000),
    ],
)
def test_since_is_a_time_or_how_long_ago(text: str, time_ms: int) -> None:
    assert _since_ms(text, NOW_MS) == time_ms


def test_a_time_that_no_calendar_has_is_shown_as_it_is() -> None:
    assert spoken(NOW_MS) == "2024-05-01 12:00:00"
    assert spoken(2**62) == str(2**62)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--retry"], 2, "name letters, or --topic, or --all"),
        (["--retry", "0-1", "--all"], 2, "not both"),
        (["0-1", "--since", "1h"], 2, "not both"),
        (["--retry", "17"], 1, "wanted a letter's id, such as 0-17"),
        (["--since", "soon"], 1, "--since: wanted a time"),
        (["--retry", "--all"], 1, "no Kafka broker answers at 127.0.0.1:9"),
    ],
)
def test_a_command_that_cannot_run_says_why(arguments: list[str], code: int, words: str) -> None:
    done = run_paywarden("admin", "dead-letters", *arguments, environment={"PAYWARDEN_KAFKA_BOOTSTRAP": "127.0.0.1:9"})
    assert done.returncode == code
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
