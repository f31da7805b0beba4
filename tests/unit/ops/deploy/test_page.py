"""The page that leads to two hosts: its blocks are shell, and name commands that exist.

`python -m tests.services.pasted_page` pastes them, which takes minutes.
"""

from __future__ import annotations

import re
import subprocess

from paywarden.ops.cli import cli
from tests.checkout import CHECKOUT
from tests.services.pasted_page import blocks

PAGE = (CHECKOUT / "docs/operate/deploy.md").read_text(encoding="utf-8")
HEADING = "Two hosts on one machine"


def test_every_block_is_shell() -> None:
    pasted = "\n".join(blocks(PAGE, HEADING))
    assert pasted.count("start_host") > 3
    done = subprocess.run(["bash", "-n"], input=pasted, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_the_page_exists() -> None:
    options = r"(?:--(?:config|log) \S+ )*"
    found = set(re.findall(rf"(?<![\w/-])paywarden {options}([a-z][\w-]*)", "\n".join(blocks(PAGE, HEADING))))
    assert found >= {"broker", "backfill", "stream", "gateway", "doctor", "load"}
    assert found <= set(cli.commands)
    on_machines = set(re.findall(rf"bin/paywarden {options}([a-z][\w-]*)", PAGE))
    assert on_machines >= {"topics", "backfill", "doctor", "warm-up"}
    assert on_machines <= set(cli.commands)


def test_the_ports_of_the_page_are_those_of_image_and_units() -> None:
    exposed = re.findall(r"^EXPOSE (.*)$", (CHECKOUT / "ops/deploy/image/Dockerfile").read_text(encoding="utf-8"), re.M)
    (ports,) = re.findall(r"^Ports: (.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"\b80\d\d\b", ports)) == set(exposed[0].split())
