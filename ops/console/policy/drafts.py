"""A draft of the policy: the text of `[policy]` alone. It names no file: lists have their entries in it."""

from __future__ import annotations

import re
import tomllib

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops.console.pages import PageRefused
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

_TOLD_CHARS_MAX = 300
_KEY_PARTS_MAX = 8
# The time that a key takes to be read grows with the square of its parts: one of 20,000 took the console eight seconds.
_LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % _KEY_PARTS_MAX  # noqa: UP031 - braces
)


def draft_source(text: str) -> Source:
    """Returns a draft as settings. Raises Misconfigured for anything else, and PageRefused for lists in files."""
    if _LONG_KEY.search(text):
        raise Misconfigured(f"the draft: wanted keys of at most {_KEY_PARTS_MAX} parts")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # A number of a thousand digits, and brackets in brackets, are TOML that nobody can read.
        raise Misconfigured(f"the draft is not TOML: {str(error)[:_TOLD_CHARS_MAX]}") from error
    if set(content) != {"policy"} or not isinstance(content["policy"], dict):
        raise Misconfigured("the draft: wanted the section [policy] and no other")
    source = Source(content, {}, "the draft")
    settings = source.section("policy", PolicySettings)
    for name, entries in settings.lists.items():
        if any(entry.startswith("@") for entry in entries):
            raise PageRefused(400, f"The list {name} names a file: wanted its entries in the draft.")
    return source
