"""`paywarden convert table`, from a file that nobody described to a history."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from paywarden.features.history.history import read_history
from paywarden.ops.cli import cli
from paywarden.ops.commands.data.init import make_project
from paywarden.schemas.errors import Misconfigured

HEAD = "transaction_id,timestamp,card_number,merchant_id,amount,fraud"


def run(*words: str, options: tuple[str, ...] = ()) -> Result:
    result = CliRunner().invoke(cli, [*options, "convert", "table", *words])
    if isinstance(result.exception, Misconfigured):
        raise result.exception
    return result


def test_guess_then_convert(tmp_path: Path) -> None:
    rows = [f"t{n},2026-05-0{1 + n % 9}T12:00:00Z,4111111111111111,m{n % 3},{n}.50,{int(n == 1)}" for n in range(20)]
    table, mapping, out = tmp_path / "t.csv", tmp_path / "m.toml", tmp_path / "out"
    table.write_text("\n".join([HEAD, *rows, "torn"]))
    guessed = run("--input", str(table), "--guess", "--map", str(mapping))
    assert "6 of 6 columns are fields of a payment" in guessed.stdout
    words = ["--input", str(table), "--map", str(mapping), "--out", str(out)]
    with pytest.raises(Misconfigured, match="card_id is hashed, which needs a key"):
        run(*words)
    (tmp_path / "key").write_text("00" * 16)
    page, counts = tmp_path / "page.html", tmp_path / "counts.json"
    words += ["--key", str(tmp_path / "key"), "--profile", str(page), "--json", str(counts), "--refused-max", "10 %"]
    done = run(*words)
    assert "payments   20" in done.stdout
    assert f"refused 1: has 1 cell; wanted 6 ({table}, line 22)" in done.stderr
    assert len(read_history(out)) == json.loads(counts.read_text())["payments"] == 20
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_amounts_have_the_minor_units_that_the_rates_count(tmp_path: Path) -> None:
    """A file of rates said that a krona of Iceland has 100 parts, and the table was converted as if it had none."""
    table, mapping, rates = tmp_path / "t.csv", tmp_path / "m.toml", tmp_path / "rates.csv"
    table.write_text("id,when,card,shop,amount,currency\np1,2026-05-01,c,m,33,ISK\np2,2026-05-01,c,m,4.50,EUR\n")
    fields = 'payment_id = "id"\nevent_time_ms = { column = "when", format = "iso", zone = "UTC" }\ncard_id = "card"\n'
    fields += 'merchant_id = "shop"\namount_minor = "amount"\ncurrency = "currency"\n'
    mapping.write_text(f"[fields]\n{fields}")
    head = "currency,minor_digits,valid_from,reference_per_unit\nEUR,2,2000-01-01,1\n"
    for digits, wanted in ((2, 3300), (0, 33)):
        rates.write_text(f"{head}ISK,{digits},2000-01-01,0.0072\n")
        settings = tmp_path / "paywarden.toml"
        settings.write_text(f'[features]\nrates = "{rates}"\n')
        out = tmp_path / f"out-{digits}"
        run("--input", str(table), "--map", str(mapping), "--out", str(out), options=("--config", str(settings)))
        assert pq.read_table(out / "payments.parquet", columns=["amount_minor"])[0].to_pylist() == [wanted, 450]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say --map FILE and --out DIR"),
        (("--map", "m", "--out", "o", "--refused-max", "1"), "wanted a share such as"),
    ],
)
def test_a_wrong_command_line_says_what_is_wanted(words: tuple[str, ...], said: str) -> None:
    result = run("--input", "t.csv", *words)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_guess_never_overwrites_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("mine")
    with pytest.raises(Misconfigured, match=r"m\.toml is there already"):
        run("--input", "t.csv", "--guess", "--map", str(tmp_path / "m.toml"))


def test_a_guess_knows_the_fields_of_the_project(tmp_path: Path) -> None:
    make_project(tmp_path / "shop")
    table, mapping = tmp_path / "t.csv", tmp_path / "m.toml"
    row = "t1,2026-05-01T12:00:00Z,c1,m1,1.50,0,ann@example.com,3"
    table.write_text(f"{HEAD},buyer_email,items\n{row}\n")
    config = ("--config", str(tmp_path / "shop" / "paywarden.toml"))
    run("--input", str(table), "--guess", "--map", str(mapping), options=config)
    assert 'buyer_email = { column = "buyer_email", hash = true }\n' in mapping.read_text()
    assert 'items = "items"\n' in mapping.read_text()
