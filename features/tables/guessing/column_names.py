"""Names of columns that hold a field of a payment, in some of the languages in which tables are written.

    trans_date_trans_time, Buchungszeit, fecha, date_operation        event_time_ms
    is_fraud, Betrug bestätigt, fraude                                the label

A name is matched as a whole, in small letters, without accents, and with a `_` for all else between its words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FRAUD_WORDS = (
    *("1", "true", "yes", "y", "fraud", "fraudulent", "chargeback", "t", "confirmed_fraud"),
    *("ja", "j", "wahr", "betrug", "oui", "vrai", "si", "sí", "sì", "s", "sim", "verdadero", "vero", "tak", "fraude"),
)
GENUINE_WORDS = (
    *("0", "false", "no", "n", "genuine", "legit", "legitimate", "normal", "f", "not_fraud", "nonfraud"),
    *("nein", "falsch", "nee", "non", "faux", "falso", "nao", "não", "nie"),
)
CURRENCY_SIGNS = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "zł": "PLN", "₹": "INR"}
"""Signs beside amounts, and the currency that each most often means."""

_NUMBER = r"_?(nr|nummer|id|no|num|numero)"
_NUMBER_OF = r"((numero|num|no|n|id|nr)_)?(de_|da_|del_|della_|di_)?(la_|l_)?"

# The English names first, then German, French, Spanish, Italian, Portuguese, Dutch and Polish ones.
FIELD_NAMES: dict[str, str] = {
    "payment_id": r"(transaction|trans|trx|tx|txn|payment|order|auth|event|charge)"
    r"_?(id|no|num|number|ref|uuid|key)|uuid|reference|id"
    rf"|(buchungs?|beleg|transaktions?|zahlungs?|auftrags?|bestell){_NUMBER}|transactie{_NUMBER}|referenz|referencia"
    rf"|{_NUMBER_OF}(transaccion|transacao|transazione|operacion|operation|operazione|transakcji|zamowienia)",
    "event_time_ms": r"(event|transaction|trans|tx|trx|txn|payment|auth|created|order)?"
    r"_?(date|datetime|time|timestamp|ts|at)(_?(time|ms|utc))*"
    r"|(trans|transaction|tx|txn)_date_(trans|transaction|tx|txn)_time|unix_time|when"
    r"|(buchungs?|transaktions?|beleg|zahlungs?)?_?(datum|zeit|zeitpunkt|zeitstempel)(_?(ortszeit|uhrzeit|utc))*"
    r"|(date|fecha|data|datum|czas)_?(et_|y_|e_|en_|i_)?(heure|hora|ora|tijd|godzina)?"
    r"(_(de_|d_|da_)?(la_|l_)?(transaccion|transaction|operacion|operation|transakcji|transactie|compra))?",
    "card_id": r"(card|cc|pan|customer|client|account|user|cust|acct|entity|rider|passenger|traveller|traveler|guest"
    r"|buyer|shopper|payer|member|subscriber)_?(id|num|no|number|token|hash|key|uuid|ref|reference|fingerprint)?"
    r"|name_?orig|(sender|payer|source)(_?(id|account))?"
    rf"|(karten?|kunden?|konto|kaart|klant|karta|klient)({_NUMBER}|_?token|_?hash|_?kennung)?"
    rf"|{_NUMBER_OF}(carte|client|compte|tarjeta|cliente|cuenta|carta|cartao|conto|karty|klienta|konta)",
    "merchant_id": r"(merchant|terminal|shop|store|seller|payee|vendor|beneficiary|recipient|receiver|dest|driver"
    r"|courier|restaurant|hotel|airline|carrier|agency|supplier|provider|outlet|venue|storefront)"
    r"_?(id|no|num|number|name|key|account|uuid|code)?|name_?dest"
    rf"|(handler|haendler|geschafts?|filiale|empfanger|verkaufer|winkel|sklep|handelaar)({_NUMBER}|_?name)?"
    rf"|(akzeptanzstelle|vertragspartner)({_NUMBER}|_?name)?"
    rf"|{_NUMBER_OF}(commerce|commercant|marchand|magasin|comercio|comerciante|tienda|negozio|esercente|loja|sklepu"
    r"|establecimiento|estabelecimento|etablissement|enseigne|esercizio|lojista|vendedor|vendeur|venditore)",
    "device_id": r"device_?(id|fingerprint|hash|key)?|fingerprint|device_fp|gerate?(_?(id|nr))?|dispositivo",
    "ip": r"ip_?(address|addr|adresse)?|(client|remote|source)_ip|(adresse|direccion|indirizzo|endereco)_ip",
    "amount_minor": r"([a-z]+_)?(amount|amt|price|total|value|sum)(_?(minor|cents|eur|usd|gbp))*"
    r"|([a-z]+_)?(betrag|summe|preis|montant|prix|importe|monto|precio|importo|prezzo|valor|bedrag|kwota)"
    r"(_(in|en|w))?(_?(cents?|eur|usd|gbp|pln|chf))*",
    "currency": r"([a-z]+_)?(currency|ccy|curr)(_?code)?"
    r"|wahrung|waehrung|devise|moneda|divisa|moeda|valuta|waluta|wahrungs?_?code",
    "mcc": r"([a-z]+_)?mcc(_?code)?|merchant_category(_code)?",
    "country": r"((merchant|card|issuer|billing|transaction)_)?country(_?code)?|land|pays|pais|paese|kraj",
    "channel": r"channel|entry_?mode|use_chip|pos_entry_mode|payment_method|product_?cd|type|kanal|canal|canale",
    "declined": r"(is_?)?declined|abgelehnt",
    # The probability with which a payment was kept with its label.
    "propensity": r"propensity(_?score)?|(p|prob|probability|chance)_?(of_?)?(kept|keep|sampled|labell?ed)"
    r"|(sampling|inclusion|labell?ing)_?(p|prob|probability|rate|propensity)",
}
"""Words of a column's name for each field, the strongest first."""

CLOCK = r"(event|transaction|trans|tx|order|payment|buchungs?)?_?(time|clock|uhrzeit|zeit|heure|hora|ora|tijd|godzina)"
"""A column of times of a day, beside one of dates."""

STEPS = r"step|hour|time|seconds|elapsed.*"
# Spanish, Portuguese, French, German and Italian.
_CHARGEBACKS = r"(contracargos?|estornos?|impayes?|rue?ckbuchung(en)?|rue?cklastschrift(en)?|riaddebit[oi])"
LABEL = (
    r"([a-z]+_)?(fraud|fraudulent|chargeback|label)(_?(flag|label|ind|indicator|bool|risk))?|class|target|is_?fraud"
    r"|(es_|est_|ist_|e_)?(betrug|fraude|frode|oszustwo)(s?_?(flag|kennzeichen|bestatigt|ja_nein))?"
    rf"|(es_|est_|ist_|e_)?{_CHARGEBACKS}"
)
DISPUTE = (
    r"(is_?|was_?)?(disputed?|charged_?back|stolen)(_?(flag|ind|indicator|bool))?"
    r"|disputad[oa]|contestad[oa]|contestation|litige|reklamiert|contestat[oa]"
)
"""A label where no column is named after fraud: a payment that its payer takes back is fraud or is disputed."""

LABEL_TIME = (
    r"([a-z]+_)?(fraud|chargeback|label|report|dispute)(e?d)?_?(date|time|at|ts|datetime|timestamp|reported_at)(_?(ms|utc))*"
    r"|([a-z]+_)?(reported|disputed)(_on)?|gemeldet(_am)?|meldedatum|(fecha|date|data)_(de_|di_|do_|du_|del_)?(fraude|frode|reclamation)"
    rf"|(fecha|date|data|datum)_(de_|di_|do_|du_|del_|der_|dell_)?(la_|l_)?{_CHARGEBACKS}|{_CHARGEBACKS}s?_?datum"
)


@dataclass(frozen=True)
class Side:
    """One of the two numbers of a place. `degrees` is the largest, either way."""

    name: str
    pattern: str
    degrees: int

    def holds(self, number: str) -> bool:
        """Returns whether a number in plain form can be one."""
        return abs(float(number)) <= self.degrees


LATITUDE = Side("latitude", r"(.+_)?(lat|latitude|breitengrad|breite|latitud|latitudine|szerokosc|breedtegraad)", 90)
LONGITUDE = Side(
    "longitude",
    r"(.+_)?(lon|long|lng|longitude|langengrad|laengengrad|lange|longitud|longitudine|dlugosc|lengtegraad)",
    180,
)


def place_of(column: str, side: Side) -> str:
    """Returns the place that a column is a side of: "merch" for merch_lat, and "place" for lat alone."""
    found = re.fullmatch(side.pattern, column)
    before = found[1] if found else None
    return before.strip("_") if before else "place"
