"""The part of a replay's report that compares the live decisions with the replayed ones."""

from __future__ import annotations

from paywarden.models.policy.policy import ACTIONS
from paywarden.models.replay.live_comparison import LiveAgreement, LiveComparison
from paywarden.models.replay.report import charts
from paywarden.models.replay.report.page import (
    NO_NUMBER,
    PAST,
    Beside,
    Definitions,
    Figures,
    Heading,
    PageBlock,
    PageGroup,
    PageTable,
    Paragraph,
    TableCell,
    count_of,
    percent,
    whole,
)

VERSIONS_SHOWN = 12


def live_section(live: LiveComparison, champion: str) -> list[PageBlock]:
    """Where live and replayed decisions agree, and where they differ. `champion`: the version of the replay's model."""
    title = Heading("Live against replay")
    if live.whole.payments == 0:
        return [title, Paragraph("No payment was decided both live and here."), *_left_out(live)]
    pairs = [
        Heading("Actions", 3),
        Paragraph("A row is the live action, a column the replay's. In the shaded cells they agree."),
        _actions(live),
        *_flags(live),
    ]
    return [
        title,
        Paragraph(_lead(live)),
        Beside(pairs, _left_out(live)),
        Figures([charts.live_differences(live.score_differences), _versions(live, champion)]),
    ]


def _lead(live: LiveComparison) -> str:
    agreed = live.whole
    assert agreed.equal_actions is not None
    assert agreed.equal_scores is not None
    assert agreed.score_difference_max is not None
    text = (
        f"Of {count_of(agreed.payments, 'payment')} decided both live and here, {_share(agreed.equal_actions)} got the "
        f"same action and {_share(agreed.equal_scores)} exactly the same score. "
    )
    difference = agreed.score_difference_max
    text += f"The largest difference of two scores is {difference:.3g}." if difference else "No score differs."
    others = _others(live)
    if others == 0:
        return text
    return text + (
        f" {count_of(others, 'payment')} got another action. "
        f"{whole(agreed.flagged_of_other_action)} of them had a live flag, such as an absent mirror: the live system "
        "knew less than the replay, or its policy reacted to the flag. The others were decided by another model or "
        "policy, or with other profiles."
    )


def _others(live: LiveComparison) -> int:
    return live.whole.payments - sum(live.actions[place][place] for place in range(len(ACTIONS)))


def _actions(live: LiveComparison) -> PageTable:
    rows: list[list[str | TableCell]] = [
        [
            PAST[action],
            *(TableCell(whole(count), "same" if other == place else "") for other, count in enumerate(counts)),
        ]
        for place, (action, counts) in enumerate(zip(ACTIONS, live.actions, strict=True))
    ]
    return PageTable(["live ↓ replay →", *(PAST[action] for action in ACTIONS)], rows)


def _flags(live: LiveComparison) -> list[PageBlock]:
    if not live.flags_of_other_action:
        return []
    rows = [[flag, whole(count)] for flag, count in live.flags_of_other_action.items()]
    title = Heading("Live flags of payments with another action", 3)
    return [title, PageTable(["flag", "payments"], rows, is_full=False)]


def _versions(live: LiveComparison, champion: str) -> PageGroup:
    shown = sorted(live.by_model_version.items(), key=lambda item: (-item[1].payments, item[0]))
    rows = [_version_row(version, agreement, champion) for version, agreement in shown[:VERSIONS_SHOWN]]
    heads = ["decided live by", "payments", "same action", "same score", "differs by up to"]
    hidden = len(shown) - VERSIONS_SHOWN
    text = (
        f"The replay's model is {champion}. Other models give other scores. If the same model gave another score "
        "live, the profiles differed: they were behind the stream, or knew payments that the history lacks."
    )
    more = [Paragraph(f"and {count_of(hidden, 'model')} more, in metrics.json", "soft")] if hidden > 0 else []
    return PageGroup([Heading("By the model that decided live", 3), Paragraph(text), PageTable(heads, rows), *more])


def _version_row(version: str, agreement: LiveAgreement, champion: str) -> list[str]:
    name = "none" if not version else f"{version} (here)" if version == champion else version
    difference = agreement.score_difference_max
    return [
        name,
        whole(agreement.payments),
        _share(agreement.equal_actions),
        _share(agreement.equal_scores),
        NO_NUMBER if difference is None else f"{difference:.3g}",
    ]


def _share(share: float | None) -> str:
    """Returns a share as text. Only exactly 1 is written as 100.00%; 0.99999 is "over 99.99%"."""
    if share is None:
        return NO_NUMBER
    text = percent(share, 2)
    return "over 99.99%" if share < 1 and text == "100.00%" else text


def _left_out(live: LiveComparison) -> list[PageBlock]:
    words = Definitions(
        [
            ("Only live", f"{count_of(live.only_live, 'payment')}: not in the replayed history."),
            ("Only replayed", f"{count_of(live.only_replayed, 'payment')}: no live decision is in the archive."),
            (
                "Repeated",
                f"{count_of(live.repeated, 'decision')} about a payment with an earlier decision: the earliest counts.",
            ),
            ("Not readable", f"{count_of(live.decisions_not_decoded, 'record')} of the archive."),
        ]
    )
    return [Heading("Left out of the comparison", 3), words]
