"""The analysts' pages: their declaration, access, rendering, and audit log.

settings       the section [console]
people/        people: names, roles, passwords, tokens, OpenID Connect, sessions
pages          the declaration of a page: path, fields, roles and content
shell          makes the application of all pages: login, roles, CSRF, headers, errors, the same as JSON
rendering/     pages as HTML, charts, an analyst's words for signals
idempotency/   a request that is sent twice acts once: forms, and requests with a key
audit          the signed log of views and acts
database       the SQLite file, which topics can rebuild
"""
