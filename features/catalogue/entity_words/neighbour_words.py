"""Words for features two hops away: through an entity's latest merchants, devices or cards to their own profiles.

    card.largest_of_last("card_worst_merchant", merchant, "merchant_fraud_share_30d", 4)
    device.mean_of_last("device_cards_devices", card, "card_devices_30d", 4)

The first looks at the last four different merchants of the card. Each has its own merchant_fraud_share_30d as of this
payment, and the largest of the four is the feature. The second says how many devices the last four cards of this
device use, on average. features/catalogue/neighbour_reads.py checks what these words ask for.
"""

from __future__ import annotations

from paywarden.features.catalogue.entity_words.words import EntityWords
from paywarden.features.catalogue.expressions import Feature, NeighbourReduction, Neighbours
from paywarden.features.catalogue.windows import wrong
from paywarden.features.kernel import NEIGHBOURS_MAX


class NeighbourWords(EntityWords):
    """Words for features of other entities that an entity's payments had."""

    def largest_of_last(self, name: str, neighbour: EntityWords, feature: str, last: int) -> Feature:
        """Returns the largest value of an earlier feature among the last `last` different neighbours.

        Missing without a neighbour, or if the feature is missing for each of them.
        """
        return self._of_last(name, neighbour, feature, last, NeighbourReduction.LARGEST)

    def mean_of_last(self, name: str, neighbour: EntityWords, feature: str, last: int) -> Feature:
        """Returns the mean value of an earlier feature over the last `last` different neighbours.

        Neighbours without the feature do not count. Missing without any that has it.
        """
        return self._of_last(name, neighbour, feature, last, NeighbourReduction.MEAN)

    def _of_last(
        self, name: str, neighbour: EntityWords, feature: str, last: int, reduction: NeighbourReduction
    ) -> Feature:
        if not isinstance(neighbour, EntityWords):
            raise wrong(name, f"wanted an entity whose profiles are read, as in merchant, got {neighbour!r}")
        if not isinstance(feature, str):
            raise wrong(name, f"wanted the name of an earlier feature of {neighbour.name}, got {feature!r}")
        if type(last) is not int or not 1 <= last <= NEIGHBOURS_MAX:
            raise wrong(name, f"wanted the last 1 to {NEIGHBOURS_MAX} different {neighbour.name}s, got {last!r}")
        if len(neighbour.keys) != 1:
            keys = ", ".join(neighbour.keys)
            told = f"{neighbour.name} has {len(neighbour.keys)} key fields ({keys}): wanted an entity of one field"
            raise wrong(name, f"{told}, whose values the {self.name} remembers")
        if neighbour.keys[0] in self.keys:
            told = f"each {self.name} has the same {neighbour.name} at all of its payments"
            raise wrong(name, f"{told}: use {feature!r} itself, or an entity with another key than {self.name}")
        value = Neighbours(self.name, neighbour.name, neighbour.keys[0], feature, last, reduction)
        meaning = f"{reduction.value} {feature} of the last {last} different {neighbour.name}s of the {self.name}"
        missing = f"the {self.name} has no earlier payment with a {neighbour.name}, or {feature} is missing for all"
        # The catalogue knows the unit: that of the other feature.
        return self._feature(name, value, meaning, "", missing)
