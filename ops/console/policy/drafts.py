"""A draft of the policy: the text of `[policy]` alone. It names no file: lists have their entries in it."""

from __future__ import annotations

import tomllib

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops.console.pages import PageRefused
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


def draft_source(text: str) -> Source:
    """Returns a draft as settings. Raises Misconfigured for anything else, and PageRefused for lists in files."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"the draft is not TOML: {error}") from error
    if set(content) != {"policy"} or not isinstance(content["policy"], dict):
        raise Misconfigured("the draft: wanted the section [policy] and no other")
    source = Source(content, {}, "the draft")
    settings = source.section("policy", PolicySettings)
    for name, entries in settings.lists.items():
        if any(entry.startswith("@") for entry in entries):
            raise PageRefused(400, f"The list {name} names a file: wanted its entries in the draft.")
    return source
