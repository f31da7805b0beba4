"""From a score and a payment's facts to an action: thresholds, rules and lists."""
