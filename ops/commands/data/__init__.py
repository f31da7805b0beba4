"""Get payments, fields and features: convert, simulate, init, features, schemas."""
