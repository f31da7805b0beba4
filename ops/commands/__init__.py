"""The commands of `paywarden`, a module each, by purpose: `paywarden --help` lists them so."""
