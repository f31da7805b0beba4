"""The distance between two places on earth, in compiled code: the same bits in every process.

Berlin (52.52, 13.405) to Paris (48.8566, 2.3522): 877.46 km
"""

from __future__ import annotations

import math

from paywarden.features.kernel.layout import DEGREE, EARTH_RADIUS_KM
from paywarden.features.kernel.toolkit.jit import compiled


@compiled()
def great_circle_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Returns the great-circle distance of two places in radians (haversine formula)."""
    half = math.sin((other_latitude - latitude) / 2.0) ** 2
    half += math.cos(latitude) * math.cos(other_latitude) * math.sin((other_longitude - longitude) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


@compiled()
def distance_km(latitude: int, longitude: int, other_latitude: int, other_longitude: int) -> float:
    """Returns the distance of two places in millionths of a degree."""
    unit = math.pi / (180.0 * DEGREE)
    return float(great_circle_km(latitude * unit, longitude * unit, other_latitude * unit, other_longitude * unit))
