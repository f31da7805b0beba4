"""Checks of a scoring host's files: catalogue, bundles, policy, tokens, certificates."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

from paywarden.features.catalogue.identity import KEY_BYTES
from paywarden.models.bundle.bundle import load_bundle, native_library
from paywarden.models.bundle.signature import BundleSettings, TrustedKeys
from paywarden.models.policy.policy import PolicySettings
from paywarden.ops import wiring
from paywarden.ops.configuration import problems_of, unknown_variables
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.settings import Source
from paywarden.scoring.net.tls import Tls, TlsSettings
from paywarden.scoring.net.tokens import AuthSettings, Tokens
from paywarden.scoring.server.context import asks_for_tls

# Long enough to renew a certificate by hand.
_CERTIFICATE_DAYS_MIN = 21


def check_settings(source: Source) -> Iterator[CheckResult]:
    """Yields everything that is wrong with the settings, the policy's conditions and its lists."""
    problems = problems_of(source, None)
    for problem in problems:
        yield CheckResult("settings", ERROR, problem)
    if not problems:
        nothing = f"there is no {source.name} in {Path.cwd()}: defaults and variables PAYWARDEN_… hold, which are right"
        yield CheckResult("settings", OK, f"{source.name}: all settings are right" if source.file else nothing)
        yield _rates(source)
    for variable, meant in unknown_variables(source.environment):
        yield CheckResult(
            "settings",
            WARNING,
            f"the environment's {variable} is no setting, and nothing reads it",
            f"{meant} may have been meant" if meant else "take it away, or correct it: PAYWARDEN_SECTION_SETTING",
        )


def check_bundles(source: Source) -> Iterator[CheckResult]:
    """Yields results about the catalogue and the bundles that it must fit. Raises Misconfigured."""
    engine = wiring.feature_engine(source)
    plan, settings = engine.plan, source.section("serve", wiring.ServeSettings)
    yield CheckResult(
        "bundle", OK, f"catalogue {plan.digest}: {plan.feature_count} features of {plan.entity_count} entities"
    )
    trusted = TrustedKeys.read(source.section("bundles", BundleSettings))
    if not source.has("features", "identity_key_file"):
        yield CheckResult(
            "bundle",
            WARNING,
            "[features] identity_key_file is not set, and the key of laptops is known to everybody",
            f"make a key (`openssl rand -hex {KEY_BYTES}`) and give it to serve, companion and stream",
        )
    else:
        yield from _identity_key(source.section("features", wiring.FeatureSettings).identity_key_file)
    for setting, path in (("bundle", settings.bundle), ("fallback_bundle", settings.fallback_bundle)):
        if not path:
            continue
        try:
            bundle = load_bundle(
                Path(path), catalogue_digest=plan.digest, identity_digest=plan.key.digest, trusted=trusted
            )
        except PaywardenError as error:
            yield CheckResult("bundle", ERROR, f"[serve] {setting}: {error}")
            continue
        manifest = bundle.manifest
        lacking = [part for part in manifest.parts if not native_library(Path(path), part).exists()]
        if lacking:
            yield CheckResult(
                "bundle",
                WARNING,
                f"[serve] {setting}: {path} has no library for this machine, and `serve` builds it at its start",
                f"run `paywarden compile {path}`",
            )
        else:
            yield CheckResult(
                "bundle", OK, f"[serve] {setting}: {manifest.model_version} scores its golden vectors to the bit"
            )


def _rates(source: Source) -> CheckResult:
    """Returns the currencies that have an exchange rate."""
    rates = wiring.rate_table(source)
    action = source.section("policy", PolicySettings).on_unknown_rate
    return CheckResult(
        "settings",
        OK,
        f"{len(rates.currencies)} currencies have an exchange rate to {rates.reference_currency or 'the reference'}: "
        f"{', '.join(sorted(rates.currencies))}. A payment in another one is scored without its amount, and "
        f"[policy] on_unknown_rate asks for {action}",
    )


def _identity_key(path: str) -> Iterator[CheckResult]:
    mode = stat.S_IMODE(Path(path).stat().st_mode) if path else 0
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        yield CheckResult(
            "bundle",
            WARNING,
            f"[features] identity_key_file: {path} is open to every user of the machine (mode {mode:o}), and who has "
            "the key can make ids that count as one",
            f"chmod 600 {path}",
        )


def check_access(source: Source) -> Iterator[CheckResult]:
    """Yields results about the files of tokens and certificates. Raises Misconfigured naming a file that is wrong."""
    auth, tls = source.section("auth", AuthSettings), source.section("tls", TlsSettings)
    if auth.tokens_file:
        Tokens(auth.tokens_file)
        yield CheckResult("access", OK, f"[auth] tokens_file: {auth.tokens_file} can be used")
    if asks_for_tls(tls):
        Tls(tls)
        yield from _certificate("certificate", tls.certificate)
        if tls.client_ca:
            yield from _certificate("client_ca", tls.client_ca)
    if not auth.tokens_file and not tls.client_ca:
        yield CheckResult(
            "access",
            WARNING,
            "callers need neither a token nor a certificate, and all of them share one queue",
            "set [auth] tokens_file or [tls] client_ca, unless a gateway names the callers",
        )


def _certificate(setting: str, path: str) -> Iterator[CheckResult]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        certificates = load_pem_x509_certificates(read_regular(path))
        begins = max(one.not_valid_before_utc for one in certificates)
        ends = min(one.not_valid_after_utc for one in certificates)
    except (OSError, ValueError):
        yield CheckResult("access", SKIPPED, f"[tls] {setting}: {path} does not say when it expires")
        return
    now = datetime.datetime.now(datetime.UTC)
    if now >= ends:
        yield CheckResult("access", ERROR, f"[tls] {setting}: {path} has expired on {ends:%Y-%m-%d}", "renew it")
    elif now < begins:
        told = f"[tls] {setting}: {path} is not valid before {begins:%Y-%m-%d %H:%M} UTC"
        yield CheckResult("access", ERROR, told, "look at the clock, or wait")
    elif (ends - now).days < _CERTIFICATE_DAYS_MIN:
        yield CheckResult("access", WARNING, f"[tls] {setting}: {path} expires on {ends:%Y-%m-%d}", "renew it")
    else:
        yield CheckResult("access", OK, f"[tls] {setting}: {path} is valid until {ends:%Y-%m-%d}")
