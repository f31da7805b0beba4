"""A draft of the policy: a rule as rows of name, operator and value, lists, the text itself, its preview, its proposal.

    /policy/drafts/ID?rule=NAME   the builder: it always shows the saved text, whose version stands in each form
    …/rule, …/list, …/text        an edit: the text that the person saw ──► another text, saved as the next version
    …/preview, …/propose          the saved text, replayed on the last week, and then proposed

The text of `[policy]` is the truth: an edit changes a part of it, and leaves a condition's text unless its rows change.
A text with faults can be saved. Then each fault stands at its rule, and nobody can preview or propose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from paywarden.features.profiles.feature_docs import listed_features
from paywarden.models.policy.condition_rows import (
    OPERATORS,
    Row,
    RowRefused,
    Rows,
    contradictions,
    row_text,
    rows_of,
    text_of,
)
from paywarden.models.policy.lists import (
    ENTRY_BYTES_MAX,
    dated_lists,
    dated_name,
    day_of,
    end_of_day_ms,
    is_plain_name,
    list_problems,
    split_name,
)
from paywarden.models.policy.policy import (
    ACTIONS,
    ConfiguredRule,
    PolicySettings,
    policy_digest,
    policy_problems,
    policy_vocabulary,
)
from paywarden.models.policy.rules import Vocabulary, compile_condition
from paywarden.models.policy.text import policy_text
from paywarden.models.registry.registry import PolicyFacts
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.page_rows import Answer, Done, Field, Page, PageRefused, Shown, Visit, not_found
from paywarden.ops.console.people import Role
from paywarden.ops.console.policy.drafts import IndexedDecisions, draft_source
from paywarden.ops.console.policy.replays import Replays
from paywarden.ops.console.policy.saved_drafts import DraftChanged, SavedDraft, SavedDrafts
from paywarden.ops.console.shell import status_of
from paywarden.ops.wiring import bundle_thresholds
from paywarden.ops.wiring.registry import policy_facts
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source

PROPOSERS = frozenset({Role.MODEL_OWNER, Role.LEAD})
DRAFTERS = PROPOSERS | {Role.ANALYST}
TEXT_CHARS_MAX = 200_000
"""A draft with the entries of its lists: some thousand cards. Larger lists belong in files."""
_BYTES_MAX = 1024 * 1024
_ROWS_MAX = 40
_ENTRIES_SHOWN, _FAULTS_SHOWN = 20, 10
WRITTEN = "written"
"""The name of a row whose value is a part in the language of conditions."""
_UNTIL = Field("until", "The last UTC day, such as 2026-12-31; empty for no end", chars_max=10)
_WHY = Field("why", "Why, for the log")
_VERSION = Field("version", "The version of the draft that you saw", kind="whole", is_required=True, low=1)
_RULE_FIELDS = (
    _VERSION,
    Field("rule", "The rule to change; empty for a new one"),
    Field("name", "Its name: at most 64 of a to z, 0 to 9 and _", is_required=True),
    Field("action", "The action that it asks for", choices=ACTIONS),
    Field("override", "Whether it decides alone", choices=("yes",)),
    _UNTIL,
    Field("joins", "Any group by all its rows, or all groups by any row of each", choices=("any", "all")),
    Field("do", "What to do", choices=("save", "preview", "remove")),
    *(
        one
        for row in range(_ROWS_MAX)
        for one in (
            Field(f"group_{row}", "The group of a row", kind="whole", low=0, high=_ROWS_MAX),
            Field(f"name_{row}", "The name that a row compares"),
            Field(f"operator_{row}", "How it compares"),
            Field(f"value_{row}", "The value that it compares with", chars_max=1_000),
        )
    ),
)
_LIST_FIELDS = (
    _VERSION,
    Field("list", "The name of the list", is_required=True),
    Field("entries", "The entries, one a line", kind="lines", chars_max=TEXT_CHARS_MAX, is_required=True),
    _UNTIL,
    Field("why", "Why, for the log", is_required=True),
    Field("do", "What to do", choices=("add", "remove")),
)
_TEXT = Field("text", "The text of [policy]", kind="lines", chars_max=TEXT_CHARS_MAX)
_PROPOSAL = (
    _VERSION,
    Field("why", "Why, for the log", is_required=True),
    Field("passphrase", "The passphrase of your key"),
    Field("agreed", "That it may decline more than a tenth of payments", choices=("yes",)),
)
Spread = Mapping[str, tuple[Any, ...]]
Edit = Callable[[str], tuple[str, str]]
"""Returns another text for a text, and what it has changed."""


@dataclass(frozen=True)
class Typed:
    """Forms that are shown again as the person has typed them. `faults`: of rows by their number."""

    rule: ConfiguredRule | None = None
    rows: tuple[tuple[int, Row], ...] = ()
    joins_any: bool = True
    faults: Mapping[int, str] | None = None
    refused: str = ""
    texts: Mapping[str, str] | None = None


class DraftPages:
    """The pages of drafts. `spread`: today's values of each name at a time."""

    def __init__(
        self,
        source: Source,
        desk: Desk,
        decided: IndexedDecisions,
        saved: SavedDrafts,
        replays: Replays,
        spread: Callable[[int], Spread],
    ) -> None:
        self._source, self._desk, self._decided = source, desk, decided
        self._saved, self._replays, self._spread = saved, replays, spread

    def pages(self) -> tuple[Page, ...]:
        """Return the pages."""
        one, big = "/policy/drafts/{draft_id}", _BYTES_MAX
        begun = (_TEXT, Field("replay", "A replay whose draft it begins with"))
        return (
            Page("/policy/drafts", self.open, "Begin a draft", "POST", DRAFTERS, begun, big),
            Page(
                one, self.show, "A draft, and the builder of one rule", roles=DRAFTERS, fields=(Field("rule", "Which"),)
            ),
            Page(f"{one}/rule", self.keep_rule, "Save or remove a rule", "POST", DRAFTERS, _RULE_FIELDS, big),
            Page(f"{one}/list", self.keep_list, "Add or remove entries", "POST", DRAFTERS, _LIST_FIELDS, big),
            Page(f"{one}/text", self.keep_text, "Save the text", "POST", DRAFTERS, (_VERSION, _TEXT, _WHY), big),
            Page(f"{one}/preview", self.preview, "Replay it on the last week", "POST", DRAFTERS, (_VERSION,)),
            Page(f"{one}/propose", self.propose, "Propose it", "POST", PROPOSERS, _PROPOSAL),
        )

    def all(self) -> list[SavedDraft]:
        """Return the drafts, the newest first."""
        return self._saved.all()

    def open(self, visit: Visit) -> Done:
        """Begin a draft with the policy of the settings, a replay's text or a text."""
        text, note = visit.text("text"), "the policy of this console"
        if replay_id := visit.text("replay"):
            found = self._replays.find(replay_id)
            if found is None or not found.draft:
                raise not_found("replay with a draft of this address")
            text, note = found.draft, "the draft of a replay"
        if not text:
            policy = self._decided.policy()
            text = policy_text(policy.settings, policy.lists)
        _check_length(text)
        made = self._saved.open(text, visit.person.name, note, visit.now_ms)
        visit.did("drafted", f"draft:{made.draft_id}", version="1")
        return Done(
            f"/policy/drafts/{made.draft_id}", "You have begun a draft.", {"draft_id": made.draft_id, "version": 1}
        )

    def show(self, visit: Visit) -> Shown:
        """Show a draft."""
        return self._shown(visit, self._draft(visit), Typed(), visit.text("rule"))

    # Edits

    def keep_rule(self, visit: Visit) -> Answer:
        """Save or remove a rule. Rows that are no condition are shown again, each with its fault."""
        draft, old_name = self._draft(visit), visit.text("rule")
        if visit.text("do") == "remove":
            return self._kept(
                visit, draft, lambda text: (_with_rule(_settings(text), old_name, None), f"removed {old_name}")
            )
        rows = _rows_typed(visit)
        vocabulary = self._vocabulary(_known(draft.text))
        kinds = vocabulary.kinds()
        faults = {number: fault for number, row in rows if (fault := _row_fault(row, vocabulary, kinds))}
        groups: dict[int, list[Row]] = {}
        for number, row in rows:
            groups.setdefault(visit.whole(f"group_{number}"), []).append(row)
        joined = Rows(tuple(tuple(groups[key]) for key in sorted(groups)), visit.text("joins", "any") == "any")
        rule = ConfiguredRule(
            visit.text("name"), "", visit.text("action", "review"), "override" in visit.values, visit.text("until")
        )
        if faults or not rows:
            refused = "" if rows else "Not saved: a rule needs a row at least."
            typed = Typed(
                rule, tuple(rows), joined.joins_any, faults, refused or "Not saved: look at the rows with faults."
            )
            return self._refused(visit, draft, typed, old_name)
        when = text_of(joined, kinds)

        def edit(text: str) -> tuple[str, str]:
            settings = _settings(text)
            old = next((one for one in settings.rules if one.name == old_name), None)
            is_same = old is not None and rows_of(old.when, kinds) == joined
            made = replace(rule, when=old.when if is_same and old is not None else when)
            return _with_rule(settings, old_name, made), f"{'changed' if old_name else 'added'} {rule.name}"

        return self._kept(visit, draft, edit, rule.name, then_preview=visit.text("do") == "preview")

    def keep_list(self, visit: Visit) -> Answer:
        """Add entries to a list, or remove some. Duplicates and spaces are trimmed, and counted in the message."""
        draft, name, day = self._draft(visit), visit.text("list"), visit.text("until")
        lines = [line.strip() for line in visit.text("entries").split("\n")]
        entries = list(dict.fromkeys(line for line in lines if line))
        adds = visit.text("do", "add") == "add"
        faults = _list_faults(name, day, lines) if adds else _day_faults(day)
        if faults:
            typed = Typed(refused=f"Not saved: {' '.join(faults)}", texts=visit.texts())
            return self._refused(visit, draft, typed, "")

        def edit(text: str) -> tuple[str, str]:
            settings = _settings(text)
            lists = {key: dict.fromkeys(value) for key, value in settings.lists.items()}
            key = dated_name(name, day)
            known = lists.get(key, {})
            changed = [entry for entry in entries if (entry in known) is not adds]
            left = (
                dict.fromkeys([*known, *changed]) if adds else dict.fromkeys(one for one in known if one not in changed)
            )
            if not adds and key not in lists:
                raise PageRefused(409, f"There is no list {key}.")
            # A rule names the list without end: it is there, even if it is empty.
            lists |= {name: lists.get(name, {}), key: left}
            if day and not left:
                del lists[key]
            done = "added to" if adds else "removed from"
            note = f"{len(changed)} {'entry' if len(changed) == 1 else 'entries'} {done} {name}"
            note += f" until {day}" if day else ""
            note += f"; {len(entries) - len(changed)} {'were there already' if adds else 'were not there'}"
            note += f", {sum(map(bool, lines)) - len(entries)} came twice"
            made = replace(settings, lists={one: tuple(value) for one, value in lists.items()})
            return _text_of(made), note

        return self._kept(visit, draft, edit)

    def keep_text(self, visit: Visit) -> Answer:
        """Save a text as it is, with its faults."""
        draft = self._draft(visit)
        if not (self._may_read(visit, _known(draft.text)) and visit.text("text")):
            raise PageRefused(
                403, "Your roles do not see the entries of lists in this text: change rules and lists instead."
            )
        return self._kept(visit, draft, lambda _: (visit.text("text") + "\n", "changed the text"))

    def _kept(
        self, visit: Visit, draft: SavedDraft, edit: Edit, rule: str = "", *, then_preview: bool = False
    ) -> Answer:
        """Save an edit of the version that the person saw. If there is a newer one, show both texts."""
        seen = (
            draft
            if visit.whole("version") == draft.version
            else self._saved.find(draft.draft_id, visit.whole("version"))
        )
        try:
            text, note = edit((seen or draft).text)
            _check_length(text)
            note = f"{note}: {visit.text('why')}" if "why" in visit.values else note
            made = self._saved.save(seen or replace(draft, version=0), text, visit.person.name, note, visit.now_ms)
        except DraftChanged:
            return self._conflict(visit, self._draft(visit), text)
        except (PageRefused, Misconfigured) as error:
            return self._refused(
                visit, draft, Typed(refused=f"Not saved: {error}", texts=visit.texts()), visit.text("rule"), error
            )
        visit.did("drafted", f"draft:{made.draft_id}", version=str(made.version), what=note)
        location = visit.address(f"/policy/drafts/{made.draft_id}", {"rule": rule}, ())
        if then_preview:
            return self._acted(visit, made, lambda: self._previewed(visit, made, location))
        return Done(
            location, f"Saved as version {made.version}: {note}.", {"draft_id": made.draft_id, "version": made.version}
        )

    def _conflict(self, visit: Visit, current: SavedDraft, mine: str) -> Shown:
        if visit.is_api:
            raise PageRefused(409, f"{current.by} has saved version {current.version} meanwhile. Nothing was saved.")
        may_read = self._may_read(visit, _known(current.text)) and self._may_read(visit, _known(mine))
        typed = {name: text for name, text in visit.texts().items() if name not in ("version", "text", "do")}
        view = {"draft": current, "mine": mine if may_read else "", "typed": typed, "may_read": may_read}
        self._note_read(visit, current, may_read=may_read)
        return Shown(
            "policy/conflict.html", {**view, "chars_max": TEXT_CHARS_MAX}, "Two people saved this draft", status=409
        )

    # Preview and proposal

    def preview(self, visit: Visit) -> Answer:
        """Begin to replay the draft."""
        draft = self._draft(visit)
        location = f"/policy/drafts/{draft.draft_id}#preview"
        return self._acted(visit, draft, lambda: self._previewed(visit, draft, location))

    def _previewed(self, visit: Visit, draft: SavedDraft, location: str) -> Done:
        facts = self._facts(draft.text)
        made = self._replays.newest_of(facts.digest)
        if made is None or made.is_over:
            made = self._replays.ask(draft.text, facts.digest, visit.person.name, visit.now_ms)
        visit.did("replayed", f"policy:{facts.digest[:12]}", replay=made.replay_id)
        view = {"draft_id": draft.draft_id, "version": draft.version, "replay_id": made.replay_id}
        return Done(location, f"Version {draft.version} is saved. Its preview on the last week has begun.", view)

    def propose(self, visit: Visit) -> Answer:
        """Propose the draft to the registry, with the champion's bundle."""
        draft = self._draft(visit)
        return self._acted(visit, draft, lambda: self._proposed(visit, draft))

    def _proposed(self, visit: Visit, draft: SavedDraft) -> Done:
        if visit.whole("version") != draft.version:
            raise PageRefused(409, f"{draft.by} has saved version {draft.version} meanwhile: look at it first.")
        facts, why = self._facts(draft.text), visit.text("why")
        if (doubt := self._doubt(facts.digest)) and "agreed" not in visit.values:
            raise PageRefused(409, f"{doubt} Tick the box beside the button if you want it nevertheless.")
        done = self._desk.propose_policy(visit.person, visit.text("passphrase"), facts, why, visit.now_ms)
        visit.did("proposed", f"policy:{facts.digest[:12]}", why=why, draft=draft.draft_id, agreed=doubt)
        return Done("/models", f"{done}.")

    def _doubt(self, digest: str) -> str:
        """Return why a proposal needs a second word; empty if it needs none."""
        found = self._replays.newest_of(digest)
        if found is None or found.result is None or not found.result.sample:
            return "Nobody has previewed this text on the last week: it may decline more than a tenth of payments."
        if heavy := found.result.heavy:
            return f"More than a tenth of last week's payments would be declined by {' and '.join(heavy)}."
        return ""

    def _acted(self, visit: Visit, draft: SavedDraft, act: Callable[[], Done]) -> Answer:
        try:
            return act()
        except (PageRefused, PaywardenError) as error:
            return self._refused(visit, draft, Typed(refused=f"Not done: {error}"), visit.text("rule"), error)

    def _refused(
        self, visit: Visit, draft: SavedDraft, typed: Typed, rule: str, error: Exception | None = None
    ) -> Shown:
        """Show what was typed again: going back would lose it."""
        status = 409 if error is None else status_of(error)[0]
        if visit.is_api:
            faults = "; ".join(f"row {number}: {fault}" for number, fault in (typed.faults or {}).items())
            raise error or PageRefused(status, f"{typed.refused} {faults}".strip())
        return replace(self._shown(visit, draft, typed, rule), status=status)

    # The page

    def _draft(self, visit: Visit) -> SavedDraft:
        found = self._saved.find(visit.path["draft_id"])
        if found is None:
            raise not_found("draft of this address: newer ones took its place")
        return found

    def _facts(self, text: str) -> PolicyFacts:
        return policy_facts(self._source, draft_source(text), bundle_thresholds(self._source, None))

    def _vocabulary(self, settings: PolicySettings | None) -> Vocabulary:
        """Return the names that a draft's conditions may use; without lists if it cannot be read."""
        return policy_vocabulary(self._decided.catalogue, {} if settings is None else _entries_of(settings))

    def _may_read(self, visit: Visit, settings: PolicySettings | None) -> bool:
        """Return whether the person may read a draft's text: entries of lists may be ids of cards."""
        return visit.person.sees_cards or (settings is not None and not settings.lists)

    def _note_read(self, visit: Visit, draft: SavedDraft, *, may_read: bool) -> None:
        if may_read and "lists" in draft.text:
            visit.saw(f"draft:{draft.draft_id}", version=str(draft.version))

    def _faults(self, text: str) -> tuple[PolicySettings | None, list[str]]:
        """Return the settings of a text, and everything that is wrong with it."""
        try:
            settings = _settings(text)
        except (PageRefused, Misconfigured) as error:
            return None, [str(error)]
        review_at, decline_at = 0.0, 0.0
        with suppress(Misconfigured):
            review_at, decline_at = bundle_thresholds(self._source, None)
        found = [problem for name, entries in settings.lists.items() for problem in list_problems(name, entries)]
        lists = _entries_of(settings)
        catalogue = self._decided.catalogue
        limits = {"review_at": review_at, "decline_at": decline_at}
        return settings, found + policy_problems(settings, lists=lists, catalogue=catalogue, **limits)

    def _shown(self, visit: Visit, draft: SavedDraft, typed: Typed, rule_name: str) -> Shown:
        settings, faults = self._faults(draft.text)
        rules = () if settings is None else settings.rules
        own = {one.name: one for one in self._decided.policy().settings.rules}
        vocabulary = self._vocabulary(settings)
        listed = []
        for one in rules:
            of_rule = [fault for fault in faults if fault.startswith(f'policy.rules "{one.name}"')]
            faults = [fault for fault in faults if fault not in of_rule]
            change = "" if own.get(one.name) == one else "changed" if one.name in own else "new"
            notes = _notes(one, vocabulary, visit.now_ms)
            listed.append(
                {
                    "rule": one,
                    "faults": [fault.partition('" ')[2] or fault.partition('", ')[2] or fault for fault in of_rule],
                    "change": change,
                    "notes": notes,
                }
            )
        chosen = typed.rule or next((one for one in rules if one.name == rule_name), None)
        may_read = self._may_read(visit, settings)
        self._note_read(visit, draft, may_read=may_read)
        digest = "" if settings is None or faults else _digest(settings)
        replay = self._replays.newest_of(digest) if digest else None
        view = {
            "draft": draft if may_read else replace(draft, text=""),
            "versions": self._saved.versions(draft.draft_id),
            "rules": listed,
            "faults": faults,
            "lists": [] if settings is None else _lists(settings, visit.now_ms, may_read=may_read),
            "builder": self._builder(visit, vocabulary, chosen, typed, rule_name if typed.rule or chosen else ""),
            "typed": dict.fromkeys(("list", "until", "why", "entries", "text"), "") | dict(typed.texts or {}),
            "refused": typed.refused,
            "may_read": may_read,
            "loses_comments": any(line.lstrip().startswith("#") for line in draft.text.splitlines()),
            "replay": None if replay is None else replay if may_read else replace(replay, draft=""),
            "is_right": settings is not None and not faults and not any(one["faults"] for one in listed),
            "doubt": self._doubt(digest) if digest else "",
            "may_propose": visit.person.may(PROPOSERS),
            "has_registry": self._desk.has_registry,
            "chars_max": TEXT_CHARS_MAX,
            "is_live": not typed.refused,
        }
        return Shown("policy/draft.html", view, "Draft of the policy")

    def _builder(
        self, visit: Visit, vocabulary: Vocabulary, rule: ConfiguredRule | None, typed: Typed, old_name: str
    ) -> dict[str, Any]:
        """Return the rule that is built, its rows by group with empty ones, and the names to choose from."""
        kinds = vocabulary.kinds()
        if typed.rule is not None:
            numbered: dict[int, list[tuple[Row, str]]] = {}
            for number, row in typed.rows:
                fault = (typed.faults or {}).get(number, "")
                numbered.setdefault(visit.whole(f"group_{number}"), []).append((row, fault))
            groups, joins_any = [numbered[key] for key in sorted(numbered)], typed.joins_any
        else:
            rows = rows_of(rule.when, kinds) if rule is not None else Rows((), True)
            if sum(map(len, rows.groups)) > _ROWS_MAX - 6:
                rows = Rows(((Row("", "", rule.when if rule else ""),),))
            groups, joins_any = [[(row, "") for row in group] for group in rows.groups], rows.joins_any
        places = iter(range(_ROWS_MAX))
        empty = Row("", "", "")
        shown = []
        for group in [*groups, []]:
            blank = [(empty, "")] * (1 if group else 2)
            fields = [
                {
                    "number": number,
                    "name": row.name or (WRITTEN if row.value else ""),
                    "operator": row.operator,
                    "value": row.value,
                    "fault": fault,
                }
                for (row, fault), number in zip([*group, *blank], places, strict=False)
            ]
            if fields:
                shown.append(fields)
        return {
            "rule": rule or ConfiguredRule("", "", "review"),
            "old_name": old_name,
            "joins_any": joins_any,
            "groups": shown,
            "names": self._names(vocabulary, self._spread(visit.now_ms)),
            "operators": list(dict.fromkeys(one for kind in OPERATORS.values() for one in kind)),
            "actions": ACTIONS,
            "written": WRITTEN,
            "values": [*(f"lists.{name}" for name in vocabulary.lists if not split_name(name)[1]), *vocabulary.flags],
        }

    def _names(self, vocabulary: Vocabulary, spread: Spread) -> list[dict[str, Any]]:
        """Return the names that a row may have, with meaning, unit and today's values: the payment's own first."""
        features = {one.name: one for one in listed_features(self._decided.catalogue)}
        found = []
        for name, kind in vocabulary.kinds().items():
            feature = features.get(name)
            found.append(
                {
                    "name": name,
                    "kind": kind,
                    "of": "payment" if feature is None else feature.entity or "payment",
                    "meaning": _MEANINGS.get(name, name.replace("_", " ")) if feature is None else feature.meaning,
                    "unit": _UNITS.get(name, kind) if feature is None else feature.unit,
                    "today": spread.get(name, ()),
                }
            )
        return sorted(found, key=lambda one: (one["of"] != "payment", one["of"]))


_MEANINGS = {
    "event_time_ms": "time of the payment",
    "amount_minor": "amount in the payment's own currency",
    "score": "the model's probability of fraud",
    "flags": "a circumstance that makes the decision less certain",
    "mcc": "category of the merchant",
    "country": "country of the payment",
    "channel": "way of the payment, such as ecom or pos",
    "currency": "currency of the payment",
    "ip": "address of the payer's device",
}
_UNITS = {"event_time_ms": "milliseconds since 1970", "amount_minor": "minor units", "score": "0 to 1"}


def _settings(text: str) -> PolicySettings:
    return draft_source(text).section("policy", PolicySettings)


def _known(text: str) -> PolicySettings | None:
    """Return the settings of a text; None if it cannot be read."""
    with suppress(PageRefused, Misconfigured):
        return _settings(text)
    return None


def _entries_of(settings: PolicySettings) -> dict[str, frozenset[str]]:
    """Return the entries of each list. A draft names no file, so they are all in it."""
    return {name: frozenset(entries) for name, entries in settings.lists.items()}


def _text_of(settings: PolicySettings) -> str:
    return policy_text(settings, _entries_of(settings))


def _check_length(text: str) -> None:
    if len(text) > TEXT_CHARS_MAX:
        raise PageRefused(409, f"The text has {len(text):,} characters, and a draft has at most {TEXT_CHARS_MAX:,}.")


def _digest(settings: PolicySettings) -> str:
    return policy_digest(settings, _entries_of(settings))


def _with_rule(settings: PolicySettings, name: str, rule: ConfiguredRule | None) -> str:
    """Return a text with another rule in the place of one, without it for None, or with a new one at its end."""
    if name and all(one.name != name for one in settings.rules):
        raise PageRefused(409, f"There is no rule {name} in this draft.")
    made = [] if rule is None else [rule]
    kept = [new for one in settings.rules for new in (made if one.name == name else [one])]
    return _text_of(replace(settings, rules=tuple(kept if name else [*kept, *made])))


def _rows_typed(visit: Visit) -> list[tuple[int, Row]]:
    """Return the rows that have a name or a value, by their number."""
    rows = []
    for number in range(_ROWS_MAX):
        name, operator, value = (visit.text(f"{part}_{number}") for part in ("name", "operator", "value"))
        if name == WRITTEN and value:
            rows.append((number, Row("", "", value)))
        elif name or value:
            rows.append((number, Row(name or "?", operator, value)))
    return rows


def _row_fault(row: Row, vocabulary: Vocabulary, kinds: Mapping[str, str]) -> str:
    """Return what is wrong with a row; empty if it is a condition."""
    if row.name == "?":
        return "choose a name for this value"
    try:
        compile_condition(row_text(row, kinds), where="row", vocabulary=vocabulary)
    except RowRefused as error:
        return str(error)
    except Misconfigured as error:
        # Where in the row's text it is helps only with a text that the person has written.
        return str(error).removeprefix("row, ") if not row.name else str(error).partition(": ")[2]
    return ""


def _list_faults(name: str, day: str, lines: Sequence[str]) -> list[str]:
    """Return everything that is wrong with entries to add, each with its line."""
    found = []
    if not is_plain_name(name) or split_name(name)[1]:
        found.append("The list's name: wanted at most 64 of a to z, 0 to 9 and _, and no day.")
    found += _day_faults(day)
    for number, line in enumerate(lines):
        if line.startswith("@"):
            found.append(f"Line {number + 1}: an entry cannot begin with @.")
        elif len(line.encode()) > ENTRY_BYTES_MAX:
            found.append(f"Line {number + 1}: wanted at most {ENTRY_BYTES_MAX} bytes.")
    more = len(found) - _FAULTS_SHOWN
    return [*found[:_FAULTS_SHOWN], f"And {more} more."] if more > 0 else found


def _day_faults(day: str) -> list[str]:
    try:
        if day:
            day_of(day)
    except ValueError:
        return [f"Until: wanted a day such as 2026-12-31, got {day}."]
    return []


def _notes(rule: ConfiguredRule, vocabulary: Vocabulary, now_ms: int) -> list[str]:
    """Return what a person should know about a rule that is right: that it never holds, has ended, or does not end."""
    lists = dict(vocabulary.lists)
    for base, parts in dated_lists(vocabulary.lists).items():
        lists[base] = lists.get(base, frozenset()) | frozenset().union(*(lists[name] for _, name in parts))
    found = [f"It can never hold: {why}." for why in contradictions(rows_of(rule.when, vocabulary.kinds()), lists)]
    if rule.when.strip() == "True":
        found.append("It holds for every payment.")
    if not rule.until:
        found.append("It has no last day.")
    elif not _day_faults(rule.until) and end_of_day_ms(rule.until) <= now_ms:
        found.append(f"It ended on {rule.until}, and does nothing.")
    return found


def _lists(settings: PolicySettings, now_ms: int, *, may_read: bool) -> list[dict[str, Any]]:
    """Return the lists: name, last day, number of entries, and the first of them."""
    found = []
    for name, entries in sorted(settings.lists.items()):
        base, day = split_name(name)
        first = entries[:_ENTRIES_SHOWN] if may_read else ()
        found.append(
            {
                "name": base,
                "until": day,
                "entries": len(entries),
                "first": first,
                "is_over": bool(day) and end_of_day_ms(day) <= now_ms,
            }
        )
    return found
