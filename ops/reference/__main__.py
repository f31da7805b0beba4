"""`python -m paywarden.ops.reference`: write the reference pages, or compare them with `--check`."""

from paywarden.ops.reference.reference_pages import main

main()
