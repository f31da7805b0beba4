"""The policy: its rules, how often each fires, and drafts that are checked and proposed."""
