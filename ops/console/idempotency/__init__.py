"""Makes a request that is sent twice act once: forms by a token (`sent_forms`), programs by a key (`keyed_acts`)."""
