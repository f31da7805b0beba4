"""The page that leads to two hosts: its blocks are shell, and name commands that exist.

`python -m tests.services.pasted_page` pastes them, which takes minutes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from click.testing import CliRunner

from paywarden.ops.cli import cli
from paywarden.ops.gateway.description import read_description
from tests.checkout import CHECKOUT
from tests.services.pasted_page import blocks

PAGE = (CHECKOUT / "docs/operate/deploy.md").read_text(encoding="utf-8")
HEADING = "Two hosts on one machine"
ON_MACHINES = "On machines with systemd"


def test_the_description_of_the_gateway_is_right(tmp_path: Path) -> None:
    """The page's description, with a key's digest in the place of the command that prints it."""
    (written,) = [block for block in blocks(PAGE, ON_MACHINES) if "gateway.toml" in block]
    text = written.partition("<<END\n")[2].partition("\nEND\n")[0]
    text = re.sub(r"\$\(.*?\)\"", hashlib.sha256(b"key").hexdigest() + '"', text)
    text = text.replace("$scoring_1", "10.0.0.1").replace("$scoring_2", "10.0.0.2")
    (tmp_path / "gateway.toml").write_text(text, encoding="utf-8")
    (tmp_path / "secret").write_text("s" * 43 + "\n", encoding="ascii")
    (tmp_path / "secret").chmod(0o600)
    assert [host.name for host in read_description(tmp_path / "gateway.toml").hosts] == ["scoring-1", "scoring-2"]


def test_the_settings_of_all_machines_are_right(tmp_path: Path) -> None:
    (text,) = [block for block in re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S) if "kafka-1:9092" in block]
    (tmp_path / "paywarden.toml").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(
        cli, ["--config", str(tmp_path / "paywarden.toml"), "doctor", "--only", "settings", "--json"]
    )
    assert done.exit_code == 0, done.output


def test_commands_by_hand_run_as_the_units_do() -> None:
    """Else `doctor` looks at the folders of another place, and `topics create` has no password."""
    unit = (CHECKOUT / "ops/deploy/systemd/paywarden-serve.service").read_text(encoding="utf-8")
    (function,) = [block for block in blocks(PAGE, ON_MACHINES) if block.startswith("as_unit()")]
    for setting in ("User", "WorkingDirectory"):
        (value,) = re.findall(rf"^{setting}=(\S+)$", unit, re.MULTILINE)
        assert value in function
    (cache,) = re.findall(r"NUMBA_CACHE_DIR=(\S+)", unit)
    assert f"NUMBA_CACHE_DIR={cache}" in function
    (named,) = re.findall(r"for file in (.*); do\n.*\. (\S+)\.env;", function)
    files = {named[1].replace("$file", file) + ".env" for file in named[0].split()}
    units = (CHECKOUT / "ops/deploy/systemd").glob("*.service")
    texts = [path.read_text(encoding="utf-8") for path in units]
    assert files == {path for text in texts for path in re.findall(r"^EnvironmentFile=-(\S+)$", text, re.MULTILINE)}
    by_hand = "\n".join(blocks(PAGE, ON_MACHINES)).replace(function, "")
    assert not re.findall(r"runuser", by_hand)


def test_every_command_of_the_page_exists() -> None:
    options = r"(?:--(?:config|log) \S+ )*"
    found = set(re.findall(rf"(?<![\w/-])paywarden {options}([a-z][\w-]*)", "\n".join(blocks(PAGE, HEADING))))
    assert found >= {"broker", "backfill", "stream", "gateway", "doctor", "load"}
    assert found <= set(cli.commands)
    on_machines = set(re.findall(rf"(?:bin/paywarden|^as_unit) {options}([a-z][\w-]*)", PAGE, re.MULTILINE))
    assert on_machines >= {"topics", "backfill", "doctor", "compile", "gateway"}
    assert on_machines <= set(cli.commands)
