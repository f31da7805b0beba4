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
    counts = tmp_path / "counts.json"
    words += ["--key", str(tmp_path / "key"), "--json", str(counts), "--refused-max", "10 %"]
    done = run(*words)
    assert "payments   20" in done.stdout
    assert f"refused 1: has 1 cell; wanted 6 ({table}, line 22)" in done.stderr
    assert len(read_history(out)) == json.loads(counts.read_text())["payments"] == 20


def test_a_conversion_without_a_fraud_says_so_loudly(tmp_path: Path) -> None:
    table, mapping = tmp_path / "t.csv", tmp_path / "m.toml"
    table.write_text("id,when,card,shop,amount,fraud\np1,2026-05-01,c,m,4.50,no\n")
    fields = '[fields]\npayment_id = "id"\nevent_time_ms = "when"\ncard_id = "card"\nmerchant_id = "shop"\n'
    fields += 'amount_minor = "amount"\ncurrency = { constant = "EUR" }\n'
    words = ("--input", str(table), "--map", str(mapping), "--out", str(tmp_path / "out"))
    mapping.write_text(fields)
    said = "WARNING: no payment is known to be a fraud: "
    assert f"{said}the mapping has no [label]" in run(*words).stderr
    label = '[label]\ncolumn = "fraud"\nfraud = ["yes"]\ngenuine = ["no"]\ndelay = "7d"\n'
    mapping.write_text(fields + label)
    assert f"{said}no row has a value of [label] fraud" in run(*words).stderr
    mapping.write_text(fields + label.replace("yes", "NO").replace('"no"', '"yes"').replace("NO", "no"))
    assert said not in run(*words).stderr


def test_currencies_without_a_rate_are_converted_and_counted(tmp_path: Path) -> None:
    table, mapping, counts = tmp_path / "t.csv", tmp_path / "m.toml", tmp_path / "counts.json"
    table.write_text(
        "id,when,card,shop,amount,currency\np1,2026-05-01,c,m,33,XAF\np2,2026-05-01,c,m,4.50,EUR\n"
        "p3,2026-05-01,c,m,7.25,NGN\np4,2026-05-01,c,m,1,XXQ\n"
    )
    fields = 'payment_id = "id"\nevent_time_ms = { column = "when", format = "iso", zone = "UTC" }\ncard_id = "card"\n'
    fields += 'merchant_id = "shop"\namount_minor = "amount"\ncurrency = "currency"\n'
    mapping.write_text(f"[fields]\n{fields}")
    words = ("--input", str(table), "--map", str(mapping), "--out", str(tmp_path / "out"), "--json", str(counts))
    done = run(*words, "--refused-max", "50 %")
    assert pq.read_table(tmp_path / "out/payments.parquet")["amount_minor"].to_pylist() == [33, 450, 725]
    assert (
        "payments without an exchange rate in [features] rates, whose amounts are missing: XAF 1, NGN 1" in done.stderr
    )
    assert "refused 1: currency: is no currency of ISO 4217" in done.stderr
    assert (json.loads(counts.read_text())["no_rate"], json.loads(counts.read_text())["refused"]) == (2, 1)


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
