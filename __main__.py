"""`python -m paywarden`: the command line without the console script, for processes that start others."""

from paywarden.ops.entry import main

main()
