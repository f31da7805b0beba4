"""The commands of `paywarden`, a module each."""
