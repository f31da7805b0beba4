"""A project's catalogue: what loading takes, what it leaves behind, and the one line that it says of a mistake."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.errors import Misconfigured

PAYMENT = """\
from paywarden.features.catalogue.fields import Payment, integer, text

customer_id = text("customer_id", 1, personal=True)
items = integer("items", 2, unit="items", least=0, most=1000)

PAYMENT = Payment(customer_id, items)
"""
CATALOGUE = """\
from __future__ import annotations

from dataclasses import dataclass

from paywarden.features.catalogue.entity import Catalogue, Entity, request
from payment import PAYMENT, items


@dataclass
class Windows:
    names: list[str]


customer = Entity("customer", key="customer_id")
CATALOGUE = Catalogue(
    (customer,),
    (*(customer.count(f"count_{w}", w) for w in Windows(["1h", "1d"]).names), request.holds("many", items >= 10)),
    PAYMENT,
)
"""


def project(folder: Path, catalogue: str = CATALOGUE, payment: str | None = PAYMENT) -> Path:
    """Writes a project; returns its catalogue's path."""
    folder.mkdir(exist_ok=True)
    if payment is not None:
        (folder / "payment.py").write_text(payment, encoding="utf-8")
    (folder / "catalogue.py").write_text(catalogue, encoding="utf-8")
    return folder / "catalogue.py"


def test_a_project_gives_its_catalogue_and_leaves_no_trace(tmp_path: Path) -> None:
    modules, path = dict(sys.modules), list(sys.path)
    catalogue = load_catalogue(project(tmp_path))
    assert catalogue.names == ("count_1h", "count_1d", "many")
    assert [one.name for one in catalogue.payment.attributes] == ["customer_id", "items"]
    assert sys.modules == modules
    assert sys.path == path
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["catalogue.py", "payment.py"]


def test_two_projects_in_one_process_have_their_own_payments(tmp_path: Path) -> None:
    other = PAYMENT.replace("customer_id", "account_id")
    first = load_catalogue(project(tmp_path / "a"))
    second = load_catalogue(project(tmp_path / "b", CATALOGUE.replace("customer_id", "account_id"), other))
    assert (first.entities[0].key, second.entities[0].key) == ("customer_id", "account_id")
    assert FeatureEngine(first).plan.digest != FeatureEngine(second).plan.digest


def refused(path: Path) -> str:
    with pytest.raises(Misconfigured) as error:
        load_catalogue(path)
    message = str(error.value)
    assert "\n" not in message
    return message


# The text that is replaced, its file, and the resulting error line.
MISTAKES = {
    "a word that there is not": (
        ("payment.py", "import Payment, integer, text", "import Payment, integer, txt"),
        "feature catalogue, payment.py:1:1: fields has no 'txt'; did you mean 'text'?",
    ),
    "a name that is not defined": (
        ("payment.py", "Payment(customer_id, items)", "Payment(custmer_id, items)"),
        "feature catalogue, payment.py:6:19: 'custmer_id' is not defined; did you mean 'customer_id'?",
    ),
    "a name that the other file lacks": (
        ("catalogue.py", "import PAYMENT, items", "import PAYMENT, item"),
        "feature catalogue, catalogue.py:6:1: payment has no 'item'; did you mean 'items'?",
    ),
    "a word of an entity": (
        ("catalogue.py", "customer.count(", "customer.cuont("),
        "feature catalogue, catalogue.py:17:8: Entity has no 'cuont'; did you mean 'count'?",
    ),
    "a module that there is not": (
        ("catalogue.py", "from payment import", "from paymnt import"),
        "feature catalogue, catalogue.py:6:1: there is no module 'paymnt', neither installed nor in the catalogue's "
        "folder",
    ),
    "text that is no Python": (
        ("payment.py", 'text("customer_id", 1, personal=True)', 'text("customer_id", 1, personal=True'),
        "feature catalogue, payment.py:3:19: '(' was never closed, which Python cannot read",
    ),
    "a zero byte": (
        ("payment.py", "items)", "items)\0"),
        "feature catalogue, payment.py:6:1: this line holds a zero byte",
    ),
    "an argument that is missing": (
        ("payment.py", 'unit="items", ', ""),
        "feature catalogue, payment.py:4:9: TypeError: integer() missing 1 required keyword-only argument: 'unit'; "
        "wanted integer(name, number, *, unit, least=-9007199254740992, most=9007199254740992, required=False, "
        "personal=False)",
    ),
    "an argument too many": (
        ("catalogue.py", 'customer.count(f"count_{w}", w)', 'customer.mean(f"count_{w}", w, items)'),
        "feature catalogue, catalogue.py:17:8: TypeError: NumberWords.mean() takes 3 positional arguments but 4 were "
        "given; wanted mean(name, window, *, of, where=None, hop='')",
    ),
    "an end of the program": (
        ("payment.py", "PAYMENT = ", "raise SystemExit\nPAYMENT = "),
        "feature catalogue, payment.py:6:1: it ends the program",
    ),
    "an error of its own, in lines": (
        ("payment.py", "PAYMENT = ", "raise ValueError('one\\ntwo')\nPAYMENT = "),
        "feature catalogue, payment.py:6:1: ValueError: one",
    ),
    "files that import each other": (
        ("payment.py", "customer_id = ", "from catalogue import customer\ncustomer_id = "),
        "feature catalogue, payment.py:3:1: catalogue imports this file, and this file imports it: move what both need "
        "into a third",
    ),
    "an import that starts with a dot": (
        ("catalogue.py", "from payment import", "from .payment import"),
        "feature catalogue, catalogue.py:6:1: the files of a catalogue are no package: write `from payment import …`, "
        "without the dot",
    ),
    "no catalogue": (
        ("catalogue.py", "CATALOGUE = ", "CATALOG = "),
        "feature catalogue, catalogue.py: it sets no CATALOGUE; did you mean 'CATALOG'?",
    ),
    "a catalogue of another type": (
        ("catalogue.py", "CATALOGUE = Catalogue(", "CATALOGUE = tuple(("),
        "feature catalogue, catalogue.py:15:18: '(' was never closed, which Python cannot read",
    ),
    "a list in place of a catalogue": (
        ("catalogue.py", "CATALOGUE = Catalogue(", "CATALOGUE = [customer]\nOTHER = Catalogue("),
        "feature catalogue, catalogue.py: CATALOGUE must be a Catalogue, got list",
    ),
    "nothing in place of a catalogue": (
        ("catalogue.py", "CATALOGUE = Catalogue(", "CATALOGUE = None\nOTHER = Catalogue("),
        "feature catalogue, catalogue.py: CATALOGUE must be a Catalogue, got NoneType",
    ),
    "features in a tuple of their own": (
        ("catalogue.py", "(*(customer", "((customer"),
        "feature catalogue, catalogue.py:15:13: features must be a list of features; number 1 is a generator",
    ),
    "a star that was forgotten": (
        ("catalogue.py", "(*(customer.count(f\"count_{w}\", w) for w in Windows([\"1h\", \"1d\"]).names)",
         "(customer.last(\"customer\", 2)"),
        "feature catalogue, catalogue.py:15:13: features must be a list of features; number 1 is a tuple; words that "
        "make several features need a star: *card.last(…)",
    ),
    "a key that is a field and not its name": (
        ("catalogue.py", 'key="customer_id"', "key=items"),
        "feature catalogue, catalogue.py:14:12: entity 'customer': key must be the name of a field, or a tuple of "
        "names, as in key='card_id', got the field 'items'",
    ),
    "a field of another kind": (
        ("payment.py", "PAYMENT = ", "from paywarden.features.catalogue.fields import network\n"
         "n = network('n', 3, of=items)\nPAYMENT = "),
        "feature catalogue, payment.py:7:5: 'n': `of` must be an address, such as ip, got the field 'items'",
    ),
    "a list of fields in place of fields": (
        ("payment.py", "Payment(customer_id, items)", "Payment([customer_id, items])"),
        "feature catalogue, payment.py:6:11: Payment takes declared fields one by one, got [the field 'customer_id', "
        "the field 'items']",
    ),
    "a word of Python as a name": (
        ("payment.py", '"items", 2', '"class", 2'),
        "feature catalogue, payment.py:4:9: 'class': is a word of Python, which no condition of a policy can use as a "
        "name; wanted another name",
    ),
    "a text where yes or no is wanted": (
        ("payment.py", "personal=True", 'personal="no"'),
        "feature catalogue, payment.py:3:15: 'customer_id': personal must be True or False, got 'no'",
    ),
    "a unit of two lines": (
        ("payment.py", '"items", least', '"a\\nb", least'),
        "feature catalogue, payment.py:4:9: 'items': unit must say what the number counts, as in 'days', got 'a\\nb'",
    ),
    **{
        f"values of a category that are {what}": (
            ("payment.py", "PAYMENT = ", f"from paywarden.features.catalogue.fields import category\n"
             f"kind = category('kind', 3, {among})\nPAYMENT = "),
            f"feature catalogue, payment.py:7:8: 'kind': `among` must {wanted}",
        )
        for what, among, wanted in (
            ("nothing", "None", "be a list of 1 to 4095 texts, got None"),
            # Its order is another one in every process, and with it the catalogue's digest.
            ("a set", "{'a'}", "be a list of 1 to 4095 texts, got {'a'}"),
            ("no values", "['a', 'b' * 257]", "list values of the field; number 2 is none: wanted printable text of 1 "
             "to 256 bytes"),
            ("card numbers", "['4111111111111111']", "list values of the field; number 1 is none: wanted printable "
             "text of 1 to 256 bytes"),
        )
    },
    "a name that is taken": (
        ("payment.py", '"items", 2', '"customer_id", 2'),
        "feature catalogue, payment.py:4:9: the field 'customer_id' is declared twice, first in payment.py:3:15",
    ),
    "a number that is taken": (
        ("payment.py", '"items", 2', '"items", 1'),
        "feature catalogue, payment.py:4:9: 'items' has the number 1, which 'customer_id' has already",
    ),
    "a number that a field has which is not listed": (
        ("payment.py", "PAYMENT = ", 'basket = text("basket", 1)\nPAYMENT = '),
        "feature catalogue, payment.py:6:10: 'basket' has the number 1, which 'customer_id' in payment.py:3:15 has "
        "already",
    ),
    "a second list of fields": (
        ("payment.py", "PAYMENT = ", "OTHER = Payment(customer_id)\nPAYMENT = "),
        "feature catalogue, payment.py:6:9: there is a second Payment: CATALOGUE takes the one in payment.py:7:11",
    ),
    "fields that the catalogue does not take": (
        ("catalogue.py", 'items >= 10)),\n    PAYMENT,', "items >= 10)),"),
        "feature catalogue, catalogue.py:14:12: entity 'customer': payments have no key field 'customer_id'; there are "
        "card_id, channel, currency, device_id, ip, mcc, merchant_id",
    ),
    "fields that a catalogue of other entities does not take": (
        ("catalogue.py", 'CATALOGUE = ', "CATALOGUE = Catalogue((Entity('c', 'ip'),), (request.hour('h'),))\nO = "),
        "feature catalogue, payment.py:6:11: CATALOGUE takes no fields: give it payment=, with this Payment",
    ),
    "a feature that uses itself": (
        ("catalogue.py", "PAYMENT,\n)", "PAYMENT,\n)\n" 'Catalogue((customer,), (ratio("r", "r", "r"),), PAYMENT)'),
        "feature catalogue, catalogue.py:20:25: 'r' uses itself: a feature can use only earlier ones",
    ),
    "an impossible kind": (
        ("payment.py", "least=0, most=1000", 'least="a", most=1000'),
        "feature catalogue, payment.py:4:9: 'items': least and most must be whole numbers, the first one smaller, got "
        "'a' and 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_line_and_column(mistake: str, tmp_path: Path) -> None:
    (file, before, after), wanted = MISTAKES[mistake]
    path = project(tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert before in text
    text = text.replace(before, after)
    if "ratio" in after:
        text = text.replace("Entity, request", "Entity, ratio, request")
    (tmp_path / file).write_text(text, encoding="utf-8")
    modules = dict(sys.modules)
    assert refused(path) == wanted
    assert sys.modules == modules


def test_a_file_with_the_name_of_an_installed_module_is_refused_when_it_is_imported(tmp_path: Path) -> None:
    path = project(tmp_path, "import click\n")
    (tmp_path / "click.py").write_text("", encoding="utf-8")
    assert refused(path) == (
        "feature catalogue, catalogue.py:1:1: an installed module is called 'click' like click.py: rename the file"
    )
    # A file that nobody of the project imports stands in nobody's way, as the libraries get their own.
    (tmp_path / "catalogue.py").write_text(CATALOGUE, encoding="utf-8")
    (tmp_path / "numpy.py").write_text("raise ValueError", encoding="utf-8")
    assert load_catalogue(path).names


LINES = {
    "(customer), (request.hour('h'),)": "entities must be a list, got a Entity; one alone needs a comma: entities=(…,)",
    "(customer,), (request.hour('h'))": "features must be a list, got a Feature; one alone needs a comma: "
    "features=(…,)",
    "('customer',), (request.hour('h'),)": "entities must be a list of entities; number 1 is a str",
    "(customer,), (request.hour('h'),), [items]": "payment must be a Payment(…), got a list",
    "(customer,), (request.hour(3),)": "3 is not a lower_case name",
    "(customer,), (ratio('r', 1, 2),)": "'r': wanted the names of two earlier features, got 1",
    "(customer,), (customer.is_new('n', items, among=2.5),)": "'n': `among` must be 1 to 64, got 2.5",
    "(customer,), customer.last('l', 2, of=5)": "'l': `of` must list at most 8 attributes",
    "(customer,), (request.below_limit('b', 100),)": "'b': limits must be amounts above 0, each larger than the one "
    "before, got 100",
    "(customer,), (request.category('c', customer_id, None),)": "'c': `among` must list 1 to 4095 values, got None",
    "(customer,), (customer.fraud_share_smoothed('f', '7d', prior=None, prior_weight=3),)": "'f': wanted a `prior` "
    "from 0 to 1, or the name of an earlier feature, and a whole `prior_weight` from 1 to 1000000, got None and 3",
}


@pytest.mark.parametrize("arguments", LINES)
def test_arguments_of_another_type_are_named_in_words_of_the_catalogue(arguments: str, tmp_path: Path) -> None:
    """They were TypeErrors, such as `'Feature' object is not iterable` for a list of one without its comma."""
    code = (
        "from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request\n"
        "from payment import PAYMENT, customer_id, items\n"
        "customer = Entity('customer', key='card_id')\n"
        f"CATALOGUE = Catalogue({arguments})\n"
    )
    place, _, what = refused(project(tmp_path, code)).removeprefix("feature catalogue, ").partition(": ")
    assert place.startswith("catalogue.py:4:")
    assert what == LINES[arguments]


@pytest.mark.parametrize("file", ["catalogue.py", "payment.py"])
def test_a_file_that_others_can_write_is_not_run(file: str, tmp_path: Path) -> None:
    path = project(tmp_path)
    (tmp_path / file).chmod(0o666)
    assert f"{tmp_path / file} is code: {tmp_path / file} can be written by others (mode 666)" in refused(path)
    (tmp_path / file).chmod(0o644)
    tmp_path.chmod(0o777)
    assert "can be written by others" in refused(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.py") == (
        f"feature catalogue: cannot read {tmp_path / 'none.py'}: No such file or directory"
    )
    os.mkfifo(tmp_path / "pipe.py")
    assert "is no file" in refused(tmp_path / "pipe.py")


def test_a_file_that_does_not_end_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that started said nothing for ever."""
    monkeypatch.setattr("paywarden.features.catalogue.loading.SLOW_S", 0.05)
    path = project(tmp_path)
    (tmp_path / "payment.py").write_text("import go_on\nwhile not go_on.now():\n    pass\nraise ValueError\n")
    found = types.ModuleType("go_on")
    found.__dict__["now"] = lambda: "has run for" in caplog.text
    monkeypatch.setitem(sys.modules, "go_on", found)
    assert "payment.py:4" in refused(path)
    assert "feature catalogue: payment.py:2 has run for 0.05 s: is there a loop without an end?" in caplog.text
