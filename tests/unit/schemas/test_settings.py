from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source, internal, read_source
from tests.checkout import CHECKOUT


@dataclasses.dataclass(frozen=True)
class Sample:
    host: str = "127.0.0.1"
    port: int = 8080
    share: float = 0.5
    verbose: bool = False
    brokers: tuple[str, ...] = ("one",)
    ports: tuple[int, ...] = ()
    password: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    share: float
    wanted: bool = False


@dataclasses.dataclass(frozen=True)
class Tables:
    port: int = 1
    rows: tuple[Row, ...] = ()
    lists: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def tables_from(text: str, tmp_path: Path, **environment: str) -> Tables:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return read_source(str(path), environment).section("policy", Tables)


def from_file(text: str, tmp_path: Path, **environment: str) -> Sample:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return read_source(str(path), environment).section("serve", Sample)


def from_environment(**environment: str) -> Sample:
    return Source({}, {f"PAYWARDEN_SERVE_{name.upper()}": value for name, value in environment.items()}).section(
        "serve", Sample
    )


def test_the_default_file_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_source(None, {}).section("serve", Sample) == Sample()
    (tmp_path / "paywarden.toml").write_text("[serve]\nport = 1\n", encoding="utf-8")
    assert read_source(None, {}).section("serve", Sample).port == 1


def test_every_plain_type_comes_from_the_file(tmp_path: Path) -> None:
    text = '[serve]\nhost = "::1"\nport = 1\nshare = 0.25\nverbose = true\nbrokers = ["a", "b"]\nports = [1, 2]\n'
    assert from_file(text, tmp_path) == Sample("::1", 1, 0.25, True, ("a", "b"), (1, 2))


def test_a_whole_number_will_do_for_a_fraction(tmp_path: Path) -> None:
    share = from_file("[serve]\nshare = 1\n", tmp_path).share
    assert (share, type(share)) == (1.0, float)


def test_every_plain_type_comes_from_the_environment() -> None:
    read = from_environment(host="::1", port="1", share="0.25", verbose="True", brokers="a, b,", ports="1,2")
    assert read == Sample("::1", 1, 0.25, True, ("a", "b"), (1, 2))


def test_an_empty_variable_is_an_empty_text_or_list() -> None:
    assert from_environment(host="", brokers="") == Sample(host="", brokers=())


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    read = from_file("[serve]\nport = 1\nshare = 0.1\n", tmp_path, PAYWARDEN_SERVE_PORT="2")
    assert (read.port, read.share) == (2, 0.1)


def test_neither_file_nor_environment_sets_an_internal_field() -> None:
    @dataclasses.dataclass(frozen=True)
    class Limits:
        port: int = 1
        burst: int = internal(5)

    assert (Source({}, {}).section("http", Limits), Limits(burst=2).burst) == (Limits(1, 5), 2)
    with pytest.raises(Misconfigured, match=r"\[http\] has no setting 'burst'"):
        Source({"http": {"burst": 2}}, {}).section("http", Limits)
    assert Source({}, {"PAYWARDEN_HTTP_BURST": "2"}).section("http", Limits).burst == 5


def test_an_unknown_section_is_refused_with_a_list_of_sections(tmp_path: Path) -> None:
    with pytest.raises(
        Misconfigured,
        match=r"some\.toml: there is no section \[sevre\]; .serve. may have been meant; there are admission, .*serve",
    ):
        from_file("[sevre]\nport = 1\n", tmp_path)


def test_an_unknown_setting_is_refused_with_file_section_and_name(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"some\.toml: \[serve\] has no setting 'prot'"):
        from_file("[serve]\nprot = 1\n", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('port = "1"', "[serve] port: wanted a whole number, got str"),
        ("port = 1.0", "[serve] port: wanted a whole number, got float"),
        ("port = true", "[serve] port: wanted a whole number, got bool"),
        ('share = "1"', "[serve] share: wanted a number, got str"),
        ("share = false", "[serve] share: wanted a number, got bool"),
        ("verbose = 1", "[serve] verbose: wanted true or false, got int"),
        ("host = 1", "[serve] host: wanted a text, got int"),
        ('brokers = "a"', "[serve] brokers: wanted a list, got str"),
        ("brokers = [1]", "[serve] brokers: wanted a text, got int"),
        ("ports = [1, true]", "[serve] ports: wanted a whole number, got bool"),
        ("host = 2024-01-01", "[serve] host: wanted a text, got date"),
    ],
)
def test_a_wrong_type_in_the_file_is_refused_by_name(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(Misconfigured, match=re.escape(message) + r"\Z"):
        from_file(f"[serve]\n{line}\n", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("port", "eighty", "a whole number"),
        ("port", "1.5", "a whole number"),
        ("port", "", "a whole number"),
        ("share", "half", "a number"),
        ("verbose", "1", "true or false"),
        ("ports", "1,two", "a whole number"),
    ],
)
def test_a_wrong_value_in_the_environment_is_refused_by_the_variables_name(name: str, text: str, wanted: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^PAYWARDEN_SERVE_{name.upper()}: wanted {wanted}\Z"):
        from_environment(**{name: text})


@pytest.mark.parametrize(("name", "why"), [("absent.toml", r".*absent\.toml: No such file"), (".", "")])
def test_a_file_that_is_named_must_be_one(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(Misconfigured, match=f"cannot read the configuration {why}"):
        read_source(str(tmp_path / name), {})


@pytest.mark.parametrize("content", [b"[serve", b"port = ", b"\xff\xfe\x00", b"port = " + b"[" * 30_000])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=r"some\.toml is not TOML"):
        read_source(str(path), {})


def test_a_secret_is_in_no_message(tmp_path: Path) -> None:
    sample = from_file('[serve]\npassword = "hunter2"\n', tmp_path)
    assert sample.password == "hunter2"
    assert "hunter2" not in repr(sample)
    with pytest.raises(Misconfigured) as caught:
        from_file('[serve]\nport = "hunter2"\n', tmp_path)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Misconfigured) as caught:
        from_environment(port="hunter2")
    assert "hunter2" not in str(caught.value)


def _module_of(path: Path) -> str:
    return ".".join(("paywarden", *path.relative_to(CHECKOUT).with_suffix("").parts))


def settings_of_the_project() -> Iterator[type[Any]]:
    """Every dataclass of the package whose name ends in Settings or Limits."""
    root = CHECKOUT
    for package in ("schemas", "features", "models", "scoring", "streams", "ops"):
        for path in sorted((root / package).rglob("*.py")):
            # The clients are packages of their own.
            if path.is_relative_to(root / "ops" / "clients"):
                continue
            if path.stem.startswith("__") or not re.search("(Settings|Limits):", path.read_text(encoding="utf-8")):
                continue
            for name, found in vars(importlib.import_module(_module_of(path))).items():
                if (
                    isinstance(found, type)
                    and dataclasses.is_dataclass(found)
                    and name.endswith(("Settings", "Limits"))
                ):
                    yield found


def test_no_settings_of_the_project_show_a_secret() -> None:
    secret = re.compile(r"password|secret|token")
    found = [
        field
        for kind in settings_of_the_project()
        for field in dataclasses.fields(kind)
        # Where a secret lies, and whether one is wanted, is none.
        if secret.search(field.name) and not field.name.endswith("_file") and field.type not in (bool, "bool")
    ]
    assert len(found) >= 3
    assert [field.name for field in found if field.repr] == []


def test_every_setting_of_the_project_can_be_read_from_text() -> None:
    """Plain types only, but for some tables: what no variable can fill is found here, not by an operator."""
    in_the_file = {
        "PolicySettings": {"rules", "segments", "explored", "lists"},
        "ShadowSettings": {"challengers"},
        "TrainingSettings": {"monotone"},
    }
    plain = {str, int, float, bool, tuple[str, ...], tuple[int, ...], tuple[float, ...]}
    kinds = list(settings_of_the_project())
    assert len(kinds) >= 10
    for kind in kinds:
        source = Source({}, {})
        assert source.section("serve", kind) == kind()
        hints = importlib.import_module("typing").get_type_hints(kind)
        tables = in_the_file.get(kind.__name__, set())
        assert {hint for name, hint in hints.items() if name not in tables} <= plain, kind


def test_tables_and_lists_by_name_come_from_the_file(tmp_path: Path) -> None:
    text = """
        [[policy.rows]]
        name = "a"
        share = 1
        [[policy.rows]]
        name = "b"
        share = 0.5
        wanted = true
        [policy.lists]
        one = ["x", "y"]
        none = []
    """
    read = tables_from(text, tmp_path, PAYWARDEN_POLICY_PORT="2")
    assert read == Tables(2, (Row("a", 1.0), Row("b", 0.5, True)), {"one": ("x", "y"), "none": ()})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[policy.rows]]\nname = "a"\nshare = "x"', '[policy] rows "a" share: wanted a number, got str'),
        ('[[policy.rows]]\nname = "a"', '[policy] rows "a": share is missing'),
        ("[[policy.rows]]\nshare = 1", "[policy] rows, number 1: name is missing"),
        ('[[policy.rows]]\nname = "a"\nshare = 1\nshrae = 1', "[policy] rows \"a\" has no setting 'shrae'"),
        ("[policy]\nrows = [1]", "[policy] rows, number 1: wanted a table, got int"),
        ('[policy]\nrows = "a"', "[policy] rows: wanted a list, got str"),
        ("[policy.rows]\nname = 1", "[policy] rows: wanted a list, got dict"),
        ('[policy.lists]\none = "x"', "[policy] lists, one: wanted a list, got str"),
        ("[policy.lists]\none = [1]", "[policy] lists, one: wanted a text, got int"),
        ("[policy]\nlists = []", "[policy] lists: wanted a table, got list"),
    ],
)
def test_a_fault_in_a_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        tables_from(text, tmp_path)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["rows", "lists"])
def test_a_table_does_not_come_from_the_environment(name: str) -> None:
    source = Source({}, {f"PAYWARDEN_POLICY_{name.upper()}": "a"})
    with pytest.raises(Misconfigured, match=rf"PAYWARDEN_POLICY_{name.upper()}: .* can be set in the file only"):
        source.section("policy", Tables)
