"""paywarden compile, paywarden sign: a bundle's native library and its signature."""

from __future__ import annotations

from pathlib import Path

import click

from paywarden.ops.extras import needs


@click.command("compile")
@click.argument("bundle", type=click.Path())
@needs("compile")
def compile_bundle(bundle: str) -> None:
    """Build the native library of BUNDLE for this machine.

    The library is compared with LightGBM on golden vectors, random rows, missing and infinite values, and both sides
    of every split. If a single score differs, the library is refused.
    """
    from paywarden.models.bundle.bundle import build_native, parity_summary

    click.echo(f"built {build_native(Path(bundle))}: {parity_summary(Path(bundle))}")


@click.command("sign")
@click.argument("bundle", type=click.Path())
@click.option(
    "--key", type=click.Path(dir_okay=False), required=True, help="PEM file of the Ed25519 private key, unencrypted."
)
def sign(bundle: str, key: str) -> None:
    """Sign BUNDLE and the native libraries that it has now.

    Where [bundles] trusted_keys is set, `serve` and `replay` take only bundles that are signed with one of those keys.
    Sign again after each `paywarden compile`.
    """
    from paywarden.models.bundle.signature import sign_bundle

    click.echo(f"signed {', '.join(sign_bundle(Path(bundle), Path(key)))}")
