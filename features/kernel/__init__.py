"""The one implementation of profiles: update, roll-up, vector. Compiled by numba, used by every process.

    layout        constants that compiled code and Python share
    plan_schema   the sections of the plan; the plan says what a catalogue computes
    toolkit/      tools for the compiled code of all packages: decorators, intrinsics, arguments, bytes, hashes

    codec         `unpack` reads a profile from its stored form, `pack` writes it back
    update        adds one event to a profile
    declared_texts    reads the texts of declared fields
    conditions    answers a catalogue's conditions about one payment
    bands         says between which bounds a number of a payment lies
    rollup        computes the slots: what a profile knew at the time of a payment
    recollection  answers questions to a profile's memories of latest values
    latest_payments   keeps the latest payments, and answers questions about them
    numbers       reads an attribute as a number; distance: how far two places are apart
    assembly      computes the float32 vector from the slots and the payment's row
    merge         makes one profile of two that hold different events of an entity
    migrate       turns a profile of another catalogue into one of this catalogue
    batches       loops over the steps: `apply_events` (stream, training, replay) and `fill_vectors` (scoring)
    neighbours    features two hops away: lists the neighbours of an entity, and reads their profiles

    packed profile ─ unpack ─► words ─┬─ update ─► words ─ pack ─► packed profile
                                      └─ roll_up ─► slots ─ assemble ─► vector

Other packages import these names from here.
"""

from paywarden.features.kernel.assembly import assemble_rows
from paywarden.features.kernel.batches import apply_events, fill_bound_vectors, fill_vectors
from paywarden.features.kernel.codec import pack, unpack
from paywarden.features.kernel.layout import (
    ABSENT,
    ALL_OF,
    AMOUNT,
    AMOUNT_MINOR,
    ANY_OF,
    AT_LEAST,
    ATTRIBUTE_COUNT,
    BELOW,
    BELOW_IF_PRESENT,
    BUCKET_COUNTS,
    CHECKSUM_BYTES,
    CODE_COUNT,
    COUNTRY,
    COUNTRY_CODES,
    DAMAGED,
    DECAY_ONE,
    DECLINE,
    DECLINE_BITS,
    DECLINED,
    DIFFERENT,
    DISTINCT_BITS,
    DISTINCT_VALUES,
    EQUAL,
    FIRST_LABEL,
    FIXED_COLUMNS,
    FRAUD_AMOUNT,
    FRAUD_COUNT,
    HOPS_MAX,
    HOUR_AMONG,
    IDENTITY_BIT,
    IDENTITY_COUNT,
    KNOWN,
    LABEL,
    LATEST_PAYMENTS,
    LAYOUT_VERSION,
    LENGTHS_AT,
    NEIGHBOURS_MAX,
    NO_ROOM,
    NONE_OF,
    NUMBER_MAX_IN_SUMS,
    NUMBER_ZERO,
    OFFSET_ZERO,
    OK,
    PAYMENT,
    READ_AGE,
    READ_AMOUNT,
    READ_NUMBER,
    READ_TEXT,
    SHAPE_BYTES_AT,
    SLACK_BYTES,
    SOURCES_MAX,
    SQUARE_BITS,
    SQUARES_HIGH,
    STATUS_UNIT,
    TIME_MS,
    TIME_MS_MAX,
    TOO_MANY_SOURCES,
    UNKNOWN,
    UNKNOWN_AMOUNT,
    UTC_OFFSET,
    UTC_OFFSET_MINUTES_MAX,
    WEEKDAY_AMONG,
    WHOLE_PAYMENTS,
    WRONG_DIGEST,
    WRONG_VERSION,
)
from paywarden.features.kernel.merge import merge_packed
from paywarden.features.kernel.migrate import decode, migrate
from paywarden.features.kernel.neighbours import (
    combine_rows,
    fill_hops,
    list_in_order,
    list_neighbours,
    read_in_order,
)
from paywarden.features.kernel.toolkit.checksum import checksum
from paywarden.features.kernel.toolkit.siphash import identities_of_texts, identity_of_text
from paywarden.features.kernel.update import advance_source, mix

__all__ = [
    "ABSENT",
    "ALL_OF",
    "AMOUNT",
    "AMOUNT_MINOR",
    "ANY_OF",
    "ATTRIBUTE_COUNT",
    "AT_LEAST",
    "BELOW",
    "BELOW_IF_PRESENT",
    "BUCKET_COUNTS",
    "CHECKSUM_BYTES",
    "CODE_COUNT",
    "COUNTRY",
    "COUNTRY_CODES",
    "DAMAGED",
    "DECAY_ONE",
    "DECLINE",
    "DECLINED",
    "DECLINE_BITS",
    "DIFFERENT",
    "DISTINCT_BITS",
    "DISTINCT_VALUES",
    "EQUAL",
    "FIRST_LABEL",
    "FIXED_COLUMNS",
    "FRAUD_AMOUNT",
    "FRAUD_COUNT",
    "HOPS_MAX",
    "HOUR_AMONG",
    "IDENTITY_BIT",
    "IDENTITY_COUNT",
    "KNOWN",
    "LABEL",
    "LATEST_PAYMENTS",
    "LAYOUT_VERSION",
    "LENGTHS_AT",
    "NEIGHBOURS_MAX",
    "NONE_OF",
    "NO_ROOM",
    "NUMBER_MAX_IN_SUMS",
    "NUMBER_ZERO",
    "OFFSET_ZERO",
    "OK",
    "PAYMENT",
    "READ_AGE",
    "READ_AMOUNT",
    "READ_NUMBER",
    "READ_TEXT",
    "SHAPE_BYTES_AT",
    "SLACK_BYTES",
    "SOURCES_MAX",
    "SQUARES_HIGH",
    "SQUARE_BITS",
    "STATUS_UNIT",
    "TIME_MS",
    "TIME_MS_MAX",
    "TOO_MANY_SOURCES",
    "UNKNOWN",
    "UNKNOWN_AMOUNT",
    "UTC_OFFSET",
    "UTC_OFFSET_MINUTES_MAX",
    "WEEKDAY_AMONG",
    "WHOLE_PAYMENTS",
    "WRONG_DIGEST",
    "WRONG_VERSION",
    "advance_source",
    "apply_events",
    "assemble_rows",
    "checksum",
    "combine_rows",
    "decode",
    "fill_bound_vectors",
    "fill_hops",
    "fill_vectors",
    "identities_of_texts",
    "identity_of_text",
    "list_in_order",
    "list_neighbours",
    "merge_packed",
    "migrate",
    "mix",
    "pack",
    "read_in_order",
    "unpack",
]
