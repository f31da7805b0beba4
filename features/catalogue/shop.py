"""A second catalogue: a web shop that knows more of its payments. Copy what fits your data.

It declares fields of its own, and has what the packaged catalogue lacks: a customer's, a card's and a device's own
earlier frauds; numbers besides the amount; places; categories; the latest payments one by one; signs of card testing.

    payment.py      the first half, from `customer_id` to PAYMENT
    catalogue.py    the second half

`label_delay` is how old a payment must be before its label counts. Set it to what your data has. `seconds_most` bounds
times since something, which would else grow with the age of the data.
"""

from __future__ import annotations

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import amount, card_id, country, declined, device_id, ip, mcc, merchant_id
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request

# The fields. Numbers never change, and no other field ever gets one.

customer_id = fields.text("customer_id", 1, personal=True)
account_opened = fields.time("account_opened", 2)
buyer_email = fields.email("buyer_email", 3)
email_domain = fields.email_domain("email_domain", 4, of=buyer_email)
ip_network = fields.network("ip_network", 5, of=ip)
card_bin = fields.bin_number("card_bin", 6)
product = fields.category("product", 7, ("electronics", "fashion", "food", "gift card", "tickets"))
item_count = fields.integer("item_count", 8, unit="pieces", least=0, most=100_000)
shipping_fee = fields.money("shipping_fee", 9)
ship_country = fields.country("ship_country", 10)
billing_name = fields.text("billing_name", 11, personal=True)
shipping_name = fields.text("shipping_name", 12, personal=True)
home = fields.coordinates("home", 13)
place = fields.coordinates("place", 15)

PAYMENT = fields.Payment(
    *(customer_id, account_opened, buyer_email, email_domain, ip_network, card_bin, product, item_count),
    *(shipping_fee, ship_country, billing_name, shipping_name, home, place),
)

# The entities and their features.

card = Entity("card", key="card_id")
customer = Entity("customer", key="customer_id")
device = Entity("device", key="device_id")
merchant = Entity("merchant", key="merchant_id")
network = Entity("network", key="ip_network")
product_kind = Entity("product_kind", key="product")
bin_merchant = Entity("bin_merchant", key=("card_bin", "merchant_id"))

_SMALL = amount < 2_00
# The share of fraud that is usual: a category of which little is known has it.
_USUAL_SHARE = 0.002

CATALOGUE = Catalogue(
    entities=(card, customer, device, merchant, network, product_kind, bin_merchant),
    features=(
        request.amount("amount"),
        request.hour("hour"),
        request.number("item_count", item_count),
        request.seconds_since("account_age", account_opened, most="365d"),
        request.equal("to_the_payer", billing_name, shipping_name),
        request.equal("ships_to_its_country", country, ship_country),
        request.distance_km("from_home_km", home, place),
        request.category("product", product, ("electronics", "fashion", "food", "gift card", "tickets")),
        # How the card is used, and whether this payment is like those before.
        card.count("card_count_1h", "1h"),
        card.count("card_count_1d", "1d"),
        card.count("card_count_30d", "30d"),
        card.amount_mean("card_amount_mean_30d", "30d"),
        card.amount_zscore("card_amount_zscore_30d", "30d"),
        card.zscore("card_items_zscore_30d", "30d", of=item_count),
        card.difference_to_last("card_items_step", of=item_count),
        card.is_new("card_new_merchant", merchant_id, among=16),
        card.is_new("card_new_device", device_id, among=8),
        card.is_new("card_new_domain", email_domain, among=4),
        card.distance_to_last_km("card_jump_km", place),
        card.speed_kmh("card_speed_kmh", place),
        *card.last("card_before", 3, of=(amount, mcc)),
        ratio("amount_to_card_mean_30d", "amount", "card_amount_mean_30d"),
        # Earlier frauds of the same card, customer and device: who was hit once is hit again.
        card.fraud_count("card_frauds_90d", "90d"),
        card.fraud_share("card_fraud_share_90d", "90d"),
        card.seconds_since_fraud("card_since_fraud", "90d"),
        customer.fraud_count("customer_frauds_90d", "90d"),
        device.fraud_count("device_frauds_30d", "30d"),
        device.fraud_share("device_fraud_share_30d", "30d"),
        # The merchant, and what is sold there.
        merchant.amount_zscore("amount_to_merchant_30d", "30d"),
        merchant.fraud_share_smoothed("merchant_fraud_7d", "7d", prior=_USUAL_SHARE, prior_weight=200),
        product_kind.amount_zscore("amount_to_product_30d", "30d"),
        product_kind.fraud_share_smoothed("product_fraud_30d", "30d", prior=_USUAL_SHARE, prior_weight=200),
        # Card testing: small amounts, declines, and many cards, in minutes.
        merchant.count("merchant_small_10m", "10m", where=_SMALL),
        merchant.share("merchant_declined_10m", "10m", of=declined),
        merchant.distinct("merchant_cards_10m", card_id, "10m", bits=256),
        bin_merchant.distinct("bin_merchant_cards_10m", card_id, "10m", bits=256),
        bin_merchant.count("bin_merchant_declined_10m", "10m", where=declined),
        card.count("card_declined_10m", "10m", where=declined),
        # Who shares a device or a network.
        device.distinct("device_cards_30d", card_id, "30d"),
        device.distinct("device_customers_30d", customer_id, "30d"),
        network.distinct("network_cards_1h", card_id, "1h", bits=256),
        network.count("network_declined_1h", "1h", where=declined),
    ),
    payment=PAYMENT,
    label_delay="7d",
    seconds_most="30d",
)
