"""The features that Paywarden computes. To add or change a feature, edit this file.

The order here is the order of the vector. A changed catalogue has another digest, and Paywarden refuses bundles that
were trained with the old one until they are trained again. Stored profiles keep the measures that both catalogues use.
`paywarden features` prints the catalogue; docs/reference/features.md is that list.
"""

from __future__ import annotations

from paywarden.features.catalogue.attributes import card_id, channel, country, declined, device_id, merchant_id
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
device = Entity("device", key="device_id")

CATALOGUE = Catalogue(
    entities=(card, merchant, device),
    features=(
        request.amount("amount"),
        request.round_zeros("amount_round_zeros"),
        request.hour("hour"),
        request.night("night"),
        request.weekend("weekend"),
        request.holds("is_ecom", channel == "ecom"),
        # How often, how much and how fast the card is used.
        card.count("card_count_10m", "10m"),
        card.count("card_count_1h", "1h"),
        card.count("card_count_1d", "1d"),
        card.count("card_count_7d", "7d"),
        card.count("card_count_30d", "30d"),
        card.share("card_declined_share_1d", "1d", of=declined),
        card.amount_sum("card_amount_sum_1h", "1h"),
        card.amount_mean("card_amount_mean_1d", "1d"),
        card.amount_mean("card_amount_mean_7d", "7d"),
        card.amount_mean("card_amount_mean_30d", "30d"),
        # The usual amount of the card. 90 days are long enough that weeks of fraud change it little; few tiles will do.
        card.amount_mean("card_amount_mean_90d", "90d", hop="10d"),
        card.amount_max("card_amount_max_7d", "7d"),
        card.amount_max("card_amount_max_30d", "30d"),
        card.seconds_since_last("card_seconds_since_last"),
        card.seconds_since_first("card_seconds_since_first"),
        ratio("amount_to_card_mean_1d", "amount", "card_amount_mean_1d"),
        ratio("amount_to_card_mean_7d", "amount", "card_amount_mean_7d"),
        ratio("amount_to_card_mean_30d", "amount", "card_amount_mean_30d"),
        ratio("amount_to_card_mean_90d", "amount", "card_amount_mean_90d"),
        ratio("amount_to_card_max_30d", "amount", "card_amount_max_30d"),
        ratio("card_max_7d_to_mean_90d", "card_amount_max_7d", "card_amount_mean_90d"),
        # Things that the card has not done before.
        card.is_new("card_new_merchant", merchant_id, among=16),
        card.is_new("card_new_device", device_id, among=8),
        card.is_new("card_new_country", country, among=8),
        card.travel_kmh("card_travel_kmh", among=8),
        # The merchant's usual business, and its known fraud. Labels take about a week, and the first one warns of those
        # that follow. Tiles of six hours would hide that first label for hours, so the hop is one hour.
        merchant.count("merchant_count_1h", "1h"),
        merchant.count("merchant_count_1d", "1d"),
        merchant.count("merchant_count_7d", "7d"),
        merchant.count("merchant_count_30d", "30d"),
        merchant.amount_mean("merchant_amount_mean_30d", "30d"),
        ratio("amount_to_merchant_mean_30d", "amount", "merchant_amount_mean_30d"),
        merchant.fraud_share("merchant_fraud_share_1d", "1d", hop="1h"),
        merchant.fraud_share("merchant_fraud_share_7d", "7d", hop="1h"),
        merchant.fraud_share_decayed("merchant_fraud_share_decayed_14d", "1d", "14d", hop="1h"),
        merchant.fraud_share("merchant_fraud_share_30d", "30d", hop="1h"),
        # At a compromised terminal every payment is fraud until someone finds out, with its usual amounts.
        merchant.fraud_streak("merchant_fraud_streak", "30d", hop="1h"),
        merchant.fraud_streak_seconds("merchant_fraud_streak_seconds", "30d", hop="1h"),
        merchant.fraud_streak_amount_mean("merchant_fraud_streak_amount_mean", "30d", hop="1h"),
        ratio("fraud_streak_to_merchant_mean_30d", "merchant_fraud_streak_amount_mean", "merchant_amount_mean_30d"),
        merchant.seconds_since_fraud("merchant_seconds_since_fraud", "30d", hop="1h"),
        merchant.seconds_since_genuine("merchant_seconds_since_genuine", "30d", hop="1h"),
        # Whether the device is new, busy or shared. Payments at a terminal have no device: these features are missing.
        device.count("device_count_10m", "10m"),
        device.count("device_count_1h", "1h"),
        device.count("device_count_1d", "1d"),
        device.count("device_count_30d", "30d"),
        device.distinct("device_cards_30d", card_id, "30d"),
        device.amount_mean("device_amount_mean_30d", "30d"),
        device.seconds_since_last("device_seconds_since_last"),
        device.seconds_since_first("device_seconds_since_first"),
        device.fraud_share("device_fraud_share_30d", "30d"),
    ),
)
