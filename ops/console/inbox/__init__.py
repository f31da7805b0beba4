"""The inbox of alerts: the topics' records in tables that can be sorted and filtered, and people's acts on them."""
