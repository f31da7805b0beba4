"""Evidence for regulators and card schemes, from an archive: ratios, what decided, and what people did about it."""
