"""A request that is sent twice acts once: a form by its token (`sent_forms`), a program's request by its key
(`keyed_acts`)."""
