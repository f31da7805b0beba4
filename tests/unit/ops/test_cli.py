"""The command line as a whole: what its start costs, and what it says of a wrong configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from paywarden.ops.cli import SECTIONS, cli
from paywarden.schemas.errors import Misconfigured

_HEAVY = ("confluent_kafka", "faust", "google.protobuf", "jinja2", "lmdb", "numba", "numpy", "pyarrow", "scipy", "ssl")


def test_the_command_line_imports_no_heavy_package_by_itself() -> None:
    """Each command imports what it needs when it runs: numba alone takes a second, and `--help` needs none of it."""
    program = f"import sys, paywarden.ops.cli; print([name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_tells_its_options_where_the_configuration_is_wrong(tmp_path: Path) -> None:
    """After a mistake in paywarden.toml, a person could not read any command's help to correct it."""
    config = tmp_path / "paywarden.toml"
    config.write_text("[serve]\n[serve]\n", encoding="utf-8")
    for asked in (["rollout", "start", "--help"], ["load", "-h"], ["models", "--help"]):
        told = CliRunner().invoke(cli, ["--config", str(config), *asked])
        assert (told.exit_code, told.stdout[:7]) == (0, "Usage: "), told.output
    for asked in (["models", "list"], ["models", "rollback", "--why", "--help"]):
        told = CliRunner().invoke(cli, ["--config", str(config), *asked], standalone_mode=False)
        assert isinstance(told.exception, Misconfigured), told.output


def test_the_help_lists_every_command_and_the_everyday_ten_first() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(cli.commands)
    assert len(next(iter(SECTIONS.values()))) == 10
    told = CliRunner().invoke(cli, ["--help"]).stdout
    assert told.index("  demo ") < told.index("  doctor ") < told.index("  serve ") < told.index("  admin ")


def test_a_person_can_hold_all_commands() -> None:
    def count(command: click.Command) -> int:
        return 1 + sum(map(count, command.commands.values())) if isinstance(command, click.Group) else 1

    assert count(cli) <= 80
