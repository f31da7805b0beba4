"""`paywarden doctor`: connects to everything that is configured, and says what is wrong and how to mend it."""
