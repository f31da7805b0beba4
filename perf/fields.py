"""The cost of a declared field at the endpoint: requests with sixteen fields of a kind, against requests without.

Measured: the reader of protobuf bodies, and the same with JSON before it, in chunks of 32 payments. The
figures are CPU nanoseconds a field: the best of rounds in turns, less that of requests without fields, divided by
sixteen. "of every kind" has sixteen fields of all kinds, and a network and a domain that derive from them. Checked:
every chunk is read without an error, by the compiled loop. Used for: the promise of at most 0.3 µs a field.

    python -m perf.fields [--json FILE]
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import Attribute
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.fields import Payment
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import compile_plan
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.validation import RequestLimits
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import pin_load

FIELDS, CHUNK = 16, 32
_NOW_MS = 1_720_000_000_000
_ROUNDS, _CHUNKS = 25, 40
_WITHOUT = "without"
# A field of each kind by its name and number, and a value.
_KINDS: Mapping[str, tuple[Callable[[str, int], Attribute], Any]] = {
    "text of 20 bytes": (fields.text, "customer-0123456789a"),
    "category": (lambda name, number: fields.category(name, number, ["book", "phone"]), "phone"),
    "bank identification number": (fields.bin_number, "45678901"),
    "country": (fields.country, "DE"),
    "address": (fields.address, "198.51.100.255"),
    "IPv6 address": (fields.address, "2001:db8:85a3:8d3::8a2e:370:7334"),
    "e-mail address of 22 bytes": (fields.email, "ann.smith@example.com"),
    "integer": (lambda name, number: fields.integer(name, number, unit="items"), 12_345),
    "decimal": (lambda name, number: fields.decimal(name, number, unit="kg", least=0, most=500), 12.345),
    "money": (fields.money, 2_500),
    "moment": (fields.time, 1_600_000_000_000),
    "flag": (fields.flag, True),
}


@dataclass(frozen=True)
class Case:
    """A deployment with its requests."""

    decoder: RequestDecoder
    bodies: Sequence[bytes]
    as_json: Sequence[bytes]

    def read(self, *, from_json: bool) -> None:
        """Read the chunk once. Raises InvalidEvent for a request that is refused."""
        taken: Sequence[bytes] = self.bodies
        if from_json:
            taken = [JSON.take(body, self.decoder.schema) for body in self.as_json]
        if 0 in self.decoder.fast.read(taken, _NOW_MS).is_usual:
            self.decoder.read_right([self.decoder.checked(body, _NOW_MS) for body in taken])

    @property
    def is_usual(self) -> bool:
        """Whether the compiled loop reads every request."""
        return 0 not in self.decoder.fast.read(self.bodies, _NOW_MS).is_usual


def case_of(payment: Payment, values: Mapping[str, Any]) -> Case:
    """Returns the deployment that declares these fields, with requests of these values."""
    card = Entity("card", "card_id")
    rates = RateTable({"EUR": [(0, RATE_SCALE)]})
    plan = compile_plan(Catalogue([card], [card.count("payments", "1d")], payment))
    decoder = RequestDecoder(plan, rates, RequestLimits())
    requests = [
        {
            "payment_id": f"payment-{number:06}",
            "event_time_ms": _NOW_MS,
            "card_id": f"card-{number:06}",
            "merchant_id": "merchant-0001",
            "ip": "192.0.2.77",
            "amount_minor": 4999,
            "currency": "EUR",
            **values,
        }
        for number in range(CHUNK)
    ]
    bodies = [decoder.schema.message(**request).SerializeToString() for request in requests]
    return Case(decoder, bodies, [json.dumps(request, separators=(",", ":")).encode() for request in requests])


def networks_of(kind: str) -> tuple[Payment, dict[str, Any]]:
    """Returns a declaration of an address and the networks that derive from it, with its value."""
    declare, value = _KINDS[kind]
    source = declare("field_0", FIELDS + 1)
    sizes = {"bits": (32, 16), "bits_v6": (64, 48)}
    derived = [
        fields.network(
            f"field_{n}", n, of=source, **{name: most - n % 2 * (most - least) for name, (most, least) in sizes.items()}
        )
        for n in range(1, FIELDS + 1)
    ]
    return Payment(source, *derived), {"field_0": value}


def cases() -> dict[str, Case]:
    """Returns the deployments by the kind of their fields."""
    made = {_WITHOUT: case_of(Payment(), {})}
    for kind, (declare, value) in _KINDS.items():
        declared = [declare(f"field_{number}", number) for number in range(1, FIELDS + 1)]
        made[kind] = case_of(Payment(*declared), {field.name: value for field in declared})
    made |= {f"network of an {kind}": case_of(*networks_of(kind)) for kind in ("address", "IPv6 address")}
    mixed = list(_KINDS)
    chosen = {f"field_{number}": _KINDS[mixed[number % len(mixed)]] for number in range(1, FIELDS + 1)}
    declared = [declare(name, number) for number, (name, (declare, _)) in enumerate(chosen.items(), 1)]
    address = next(one for one in declared if one.field is not None and one.field.form.value == "address")
    mail = next(one for one in declared if one.field is not None and one.field.form.value == "e-mail")
    derived = [fields.network("network", 17, of=address), fields.email_domain("domain", 18, of=mail)]
    values = {name: value for name, (_, value) in chosen.items()}
    made["of every kind"] = case_of(Payment(*declared, *derived), values)
    for kind, case in made.items():
        assert case.is_usual, kind
    return made


def measure(made: Mapping[str, Case], *, from_json: bool, rounds: int = _ROUNDS) -> dict[str, float]:
    """Returns CPU nanoseconds a payment, the best of rounds in turns."""
    best = dict.fromkeys(made, float("inf"))
    for _ in range(rounds):
        for kind, case in made.items():
            started = time.process_time()
            for _ in range(_CHUNKS):
                case.read(from_json=from_json)
            best[kind] = min(best[kind], (time.process_time() - started) / _CHUNKS / CHUNK * 1e9)
    return best


def main() -> None:
    arguments = arguments_of(__doc__)
    pin_load()
    made = cases()
    by_format = {name: measure(made, from_json=name == "json") for name in ("protobuf", "json")}
    figures: dict[str, float] = {}
    print(f"{'nanoseconds':<42} {'protobuf':>10} {'JSON':>10}")
    for kind in made:
        for name, best in by_format.items():
            is_whole = kind == _WITHOUT
            key = f"{name}_{'payment_without' if is_whole else kind.split(' (')[0].replace(' ', '_')}_ns"
            figures[key] = best[kind] if is_whole else (best[kind] - best[_WITHOUT]) / FIELDS
        shown = [figures[key] for key in list(figures)[-2:]]
        label = "a payment without fields" if kind == _WITHOUT else f"a field: {kind}"
        print(f"{label:<42} {shown[0]:>10,.0f} {shown[1]:>10,.0f}")
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
