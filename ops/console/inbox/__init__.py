"""The inbox of alerts: what the topics say, in tables that can be sorted and filtered, and what people do about it."""
