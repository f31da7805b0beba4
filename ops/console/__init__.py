"""The analysts' pages: their declaration, access, rendering, and audit log.

settings       the section [console]
people/        who somebody is: names, roles, passwords, tokens, OpenID Connect, sessions
pages          what a page declares: its path, fields, roles and what it shows
shell          makes the application of all pages: login, roles, CSRF, headers, errors, the same as JSON
rendering/     how a page looks: HTML, charts, an analyst's words for signals
idempotency/   what is sent twice acts once: forms, and requests with a key
audit          the signed log of views and acts
database       the SQLite file, which topics can rebuild
"""
