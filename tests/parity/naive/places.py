"""Distances between places, by the haversine formula."""

from __future__ import annotations

import csv
import math

from tests.checkout import CHECKOUT

COUNTRIES = CHECKOUT / "features" / "catalogue" / "codes" / "countries.csv"
EARTH_RADIUS_KM = 6371.0


def haversine_km(origin: tuple[float, float] | None, destination: tuple[float, float] | None) -> float:
    if origin is None or destination is None:
        return math.nan
    (lat, lon), (to_lat, to_lon) = origin, destination
    half = math.sin((to_lat - lat) / 2.0) ** 2
    half += math.cos(lat) * math.cos(to_lat) * math.sin((to_lon - lon) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


def _places() -> dict[str, tuple[float, float]]:
    """Returns latitude and longitude by country, in radians, rounded to tenths of a degree."""
    unit = math.pi / 1800.0
    with COUNTRIES.open(encoding="ascii", newline="") as file:
        return {
            row["country"]: (round(10 * float(row["latitude"])) * unit, round(10 * float(row["longitude"])) * unit)
            for row in csv.DictReader(file)
        }


PLACES = _places()


def distance_km_between(origin: object, destination: object) -> float:
    """Returns the distance by the haversine formula."""
    return haversine_km(PLACES.get(str(origin)), PLACES.get(str(destination)))
