"""Builds the releases of a scoring host: loads one at the start, and makes others ready while the workers run."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import MANIFEST, Bundle, Manifest, load_bundle, native_library, read_manifest
from paywarden.models.bundle.signature import BUILD, SIGNATURE, BundleSettings, TrustedKeys
from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.policy.prepared_policy import PreparedPolicy, load_policy, prepare_policy
from paywarden.ops.libraries import build_missing
from paywarden.ops.wiring import stores
from paywarden.ops.wiring.policy_parts import policy as configured_policy
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.settings import DEFAULT_FILE, Source, read_source
from paywarden.scoring.server.deployment.deployment_file import Deployment, ReleasePaths, release_key, unfinished_prefix
from paywarden.scoring.server.deployment.releases import READY_BUNDLE, Release, release_of

_log = logging.getLogger(__name__)


class HostReleases:
    """Releases for the feature catalogue and the identity key that the host was started with."""

    def __init__(self, source: Source, engine: FeatureEngine, bundle: str | None) -> None:
        """`bundle` replaces `[serve] bundle`, now and later."""
        self._source, self._engine, self._bundle = source, engine, bundle
        self.config = Path(source.name)

    def wanted(self) -> Deployment:
        """See ReleaseSource."""
        settings = self._read().section("serve", ServeSettings)
        return Deployment(ReleasePaths(self._bundle or settings.bundle))

    def refusal_of(self, deployment: Deployment) -> str:
        """See ReleaseSource."""
        from paywarden.models.registry.registry_settings import ModelRegistrySettings

        # The settings of the start: nobody gets around the registry by changing them meanwhile.
        source = self._source
        if not source.section("models", ModelRegistrySettings).people:
            return ""
        from paywarden.models.registry.permissions import refusal_of_deployment
        from paywarden.models.registry.registry_rules import state_of
        from paywarden.ops.wiring.registry import model_registry

        registry = model_registry(source)
        log = registry.log.read()
        named = {role: paths.version for role, paths in deployment.releases.items()}
        return refusal_of_deployment(log, state_of(log, registry.people, registry.rules), named)

    def load(self, paths: ReleasePaths, *, with_fallback: bool = True) -> Release:
        """Load a release in this process, with the fallback of the settings. Builds libraries that are missing.

        Raises Misconfigured, BundleRefused.
        """
        settings = self._source.section("serve", ServeSettings)
        trusted = self._trusted(self._source)
        fallback = settings.fallback_bundle if with_fallback else ""
        folders = [Path(paths.bundle), *map(Path, filter(None, [fallback]))]
        bundles = [self._load(folder, trusted) for folder in folders]
        manifest = bundles[0].manifest
        policy = self._policy(self._source, paths, review_at=manifest.review_at, decline_at=manifest.decline_at)
        digests = [bundle.manifest.digest for bundle in bundles]
        _require(paths, Version(digests[0], policy.digest))
        return release_of(bundles, digests, PreparedPolicy.of(policy))

    def files_of(self, paths: ReleasePaths) -> list[Path]:
        """See ReleaseSource."""
        policy = self._policy_source(self._read(), paths)
        lists = policy.section("policy", PolicySettings).lists.values()
        files = [Path(entry[1:]) for entries in lists for entry in entries if entry.startswith("@")]
        return [_followed(paths.bundle) / MANIFEST, self.config, *map(Path, filter(None, [paths.policy])), *files]

    def prepare(self, paths: ReleasePaths, ready: Path) -> str:
        """See ReleaseSource."""
        source = self._read()
        trusted = self._trusted(source)
        # A link that is turned over meanwhile must not give half of each bundle.
        bundle = _followed(paths.bundle)
        manifest = read_manifest(bundle)
        policy = self._policy(source, paths, review_at=manifest.review_at, decline_at=manifest.decline_at)
        version = Version(manifest.digest, policy.digest)
        _require(paths, version)
        key = release_key(version)
        if (ready / key).is_dir():
            if trusted is not None:
                trusted.require(bundle)
            if self._is_whole(ready / key):
                return key
            # Its files were damaged, by a loss of power for instance.
            shutil.rmtree(ready / key)
        unfinished = Path(tempfile.mkdtemp(prefix=unfinished_prefix(os.getpid()), dir=ready))
        try:
            copy = unfinished / READY_BUNDLE
            _copy(bundle, manifest, copy)
            try:
                checked = self._load(copy, trusted)
            except BundleRefused as error:
                raise BundleRefused(str(error).replace(str(copy), str(bundle))) from error
            checked.close()
            if checked.manifest != manifest:
                raise BundleRefused(f"bundle {bundle}: it was changed while it was checked")
            prepare_policy(policy, unfinished, review_at=manifest.review_at, decline_at=manifest.decline_at)
            os.rename(unfinished, ready / key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return key

    def _load(self, folder: Path, trusted: TrustedKeys | None) -> Bundle:
        """Load a bundle, and build its libraries that are missing."""
        return load_bundle(
            folder,
            catalogue_digest=self._engine.plan.digest,
            identity_digest=self._engine.plan.key.digest,
            trusted=trusted,
            built_here=build_missing(folder, trusted),
        )

    def _is_whole(self, folder: Path) -> bool:
        """Returns whether the supervisor can load a release that was made ready before."""
        try:
            load_bundle(folder / READY_BUNDLE, catalogue_digest=self._engine.plan.digest).close()
            load_policy(folder, stores.catalogue(self._source))
        except (BundleRefused, Misconfigured) as error:
            _log.warning("%s: it is made ready again", error)
            return False
        return True

    def _read(self) -> Source:
        """Returns the configuration as it is now."""
        if not self._source.file and self._source.name == DEFAULT_FILE:
            return self._source
        return read_source(self._source.name, self._source.environment)

    def _trusted(self, source: Source) -> TrustedKeys | None:
        return TrustedKeys.read(source.section("bundles", BundleSettings))

    def _policy_source(self, source: Source, paths: ReleasePaths) -> Source:
        return source if not paths.policy else read_source(paths.policy, {}, check_sections=False)

    def _policy(self, source: Source, paths: ReleasePaths, *, review_at: float, decline_at: float) -> Policy:
        own = self._policy_source(source, paths)
        return configured_policy(
            own, review_at=review_at, decline_at=decline_at, catalogue=stores.catalogue(self._source)
        )


def _followed(bundle: str) -> Path:
    """Returns the folder that a path leads to. A link that leads back to itself stays, and cannot be opened."""
    return Path(os.path.realpath(bundle))


def _copy(bundle: Path, manifest: Manifest, copy: Path) -> None:
    """Copy the files that serving needs. A file that is missing is left out: the check of the copy names it."""
    copy.mkdir(parents=True)
    names = [MANIFEST, SIGNATURE, *(name for part in manifest.parts for name in (part.model_text, part.golden))]
    # A signature covers the records of all machines' libraries, this machine needs its own libraries alone.
    names += [path.relative_to(bundle).as_posix() for path in bundle.glob(f"native/**/{BUILD}")]
    names += [native_library(Path(), part).as_posix() for part in manifest.parts]
    for name in names:
        if (bundle / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, copy / name)


def _require(paths: ReleasePaths, found: Version) -> None:
    wanted = paths.version
    if wanted.bundle not in ("", found.bundle):
        raise BundleRefused(f"bundle {paths.bundle}: wanted the digest {wanted.bundle}, got {found.bundle}")
    if wanted.policy not in ("", found.policy):
        where = paths.policy or "of the configuration"
        raise Misconfigured(f"policy {where}: wanted the digest {wanted.policy}, got {found.policy}")
