"""Parts of one benchmark that is too long for one file."""
