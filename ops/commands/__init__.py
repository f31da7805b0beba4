"""The commands of `paywarden`, a module each, by what they are for: `paywarden --help` lists them so."""
