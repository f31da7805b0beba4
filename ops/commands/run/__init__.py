"""Run or try the processes of a host."""
