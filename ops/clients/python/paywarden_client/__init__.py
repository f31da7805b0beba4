"""Client of Paywarden, the fraud scoring service. ops/clients/SPECIFICATION.md says what it does, rule by rule."""
