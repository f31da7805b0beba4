"""`paywarden compile` and `paywarden admin sign`: a bundle's native library and its signature."""

from __future__ import annotations

from pathlib import Path

import click

from paywarden.ops.extras import needs


@click.command("compile")
@click.argument("bundle", metavar="[BUNDLE]", type=click.Path(), required=False)
def compile_code(bundle: str | None) -> None:
    """Build the native library of BUNDLE, or compile Paywarden.

    The library is compared with LightGBM on golden vectors, random rows, missing and infinite values, and both sides
    of every split. If a single score differs, the library is refused. It needs the extra `compile`.

    Without BUNDLE the command compiles numba code and byte code, so that the first start of a process is as quick as
    later ones. Use it when you install, or build an image.
    """
    if bundle is not None:
        _build(bundle)
        return
    from paywarden.ops.commands.run.warm_up import warm_up

    for part in warm_up():
        click.echo(f"compiled: {part}")


@needs("compile")
def _build(bundle: str) -> None:
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
    Sign again after each `paywarden compile BUNDLE`.
    """
    from paywarden.models.bundle.signature import sign_bundle

    click.echo(f"signed {', '.join(sign_bundle(Path(bundle), Path(key)))}")
