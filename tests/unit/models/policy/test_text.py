"""A policy's own file says what the policy says."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.lists import read_lists
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, PolicySettings, policy_digest
from paywarden.models.policy.text import policy_text
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
SHARE = st.floats(0, 1)
POLICIES = st.builds(
    PolicySettings,
    review_at=SHARE,
    decline_at=SHARE,
    stale_after_ms=st.integers(0, 10**6),
    on_mirror_stale=TEXT,
    rules=st.lists(st.builds(ConfiguredRule, TEXT, TEXT, TEXT, st.booleans(), TEXT | st.just("")), max_size=3).map(
        tuple
    ),
    segments=st.lists(st.builds(ConfiguredSegment, TEXT, TEXT, SHARE, SHARE), max_size=3).map(tuple),
)
ENTRIES = st.frozensets(TEXT.filter(lambda text: not text.startswith("@")), max_size=4)


@given(policy=POLICIES, lists=st.dictionaries(st.sampled_from(("one", "two")), ENTRIES))
def test_the_text_of_a_policy_is_read_as_the_same_policy(
    policy: PolicySettings, lists: dict[str, frozenset[str]]
) -> None:
    text = policy_text(policy, lists)
    read = Source(tomllib.loads(text), {}).section("policy", PolicySettings)
    assert policy_digest(read, read_lists(read.lists)) == policy_digest(policy, lists)
    assert policy_text(read, read_lists(read.lists)) == text


def test_an_entry_that_would_name_a_file_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"policy\.lists one: an entry begins with @"):
        policy_text(PolicySettings(), {"one": frozenset({"@home"})})
