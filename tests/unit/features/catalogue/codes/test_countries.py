"""Where countries are: every one there is, on the globe, and near enough where it belongs."""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np
import pytest

from paywarden.features.catalogue.attributes import country_code, is_country
from paywarden.features.catalogue.codes.countries import load_places

FILE = resources.files("paywarden.features.catalogue.codes").joinpath("countries.csv")
LINES = FILE.read_text(encoding="ascii").splitlines()
CODES = [row["country"] for row in csv.DictReader(LINES)]


def place(country: str) -> tuple[float, float]:
    """Latitude and longitude in degrees."""
    latitude, longitude = load_places()[country_code(country)]
    return (latitude - 10_000) / 10, (longitude - 10_000) / 10


def test_every_country_code_has_a_place_and_code_0_has_none() -> None:
    places = load_places()
    assert places.shape == (677, 2)
    assert places.dtype == np.int64
    assert places[0].tolist() == [0, 0]


def test_every_country_is_listed_once_by_its_two_letters() -> None:
    assert all(is_country(code) for code in CODES)
    assert len(CODES) == len(set(CODES))
    # ISO 3166-1 has 249; one more is in common use.
    assert 245 <= len(CODES) <= 252
    assert {"DE", "FR", "US", "CN", "IN", "BR", "ZA", "AU", "NZ", "GB"} <= set(CODES)


def test_every_place_is_on_the_globe_and_unknown_codes_have_none() -> None:
    places = load_places()
    listed = {country_code(code) for code in CODES}
    for code, (latitude, longitude) in enumerate(places.tolist()):
        if code in listed:
            assert abs(latitude - 10_000) <= 900
            assert abs(longitude - 10_000) <= 1800
        else:
            # The kernel takes 0 for a code that is no country: no place may be 0.
            assert (latitude, longitude) == (0, 0)


@pytest.mark.parametrize(
    ("country", "latitude", "longitude"),
    [
        ("DE", 51, 10),
        ("FR", 46, 2),
        ("US", 38, -97),
        ("BR", -10, -55),
        ("IN", 20, 77),
        ("JP", 36, 138),
        ("ZA", -29, 24),
        ("AU", -27, 133),
        ("NZ", -41, 174),
        ("GB", 54, -2),
    ],
)
def test_countries_are_where_they_are(country: str, latitude: float, longitude: float) -> None:
    found = place(country)
    assert abs(found[0] - latitude) < 5
    assert abs(found[1] - longitude) < 5
