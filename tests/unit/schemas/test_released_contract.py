"""The endpoint's .proto file against the released contract: `make check-contract` refuses what would break callers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.missing_tools import BUF

BUF_PATH = Path(sys.executable).with_name("buf")
pytestmark = pytest.mark.skipif(not BUF_PATH.exists(), reason=BUF.reason)

PROTO = CHECKOUT / "schemas" / "proto" / "scoring.proto"


def compared(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Returns the end of the check with `text` as the contract of today."""
    contract = folder / "scoring.proto"
    contract.write_text(text, encoding="utf-8")
    command = ["make", "--silent", "check-contract", f"CONTRACT={contract}", f"BIN={BUF_PATH.parent}"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_each_change_that_breaks_callers_is_refused(tmp_path: Path) -> None:
    text = PROTO.read_text(encoding="utf-8")
    breaks = (
        ("string card_id = 3;", "string card = 3;", 'name from "card_id" to "card"'),
        ("int64 event_time_ms = 2;", "int64 event_time_ms = 20;", 'field "2" with name "event_time_ms"'),
        ("double score = 3;", "float score = 3;", 'type from "double" to "float"'),
        ("  rpc ScoreBatch(ScoreBatchRequest) returns (ScoreBatchResponse);\n", "", 'RPC "ScoreBatch"'),
    )
    for before, after, _ in breaks:
        assert before in text
        text = text.replace(before, after)
    done = compared(text, tmp_path)
    assert done.returncode != 0
    assert all(said in done.stdout for _, _, said in breaks)


def test_a_further_field_breaks_nobody(tmp_path: Path) -> None:
    text = PROTO.read_text(encoding="utf-8")
    last = "optional int32 utc_offset_minutes = 12;"
    assert last in text
    done = compared(text.replace(last, f"{last} optional string another = 13;"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
