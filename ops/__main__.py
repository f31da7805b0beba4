"""`python -m ops`: the command line without the console script, for processes that start others."""

from ops.cli import main

main()
