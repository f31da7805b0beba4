"""The analysts' pages.

pages          the declaration of a page in one row: path, fields, roles and content
shell          makes the application of all rows: login, roles, forms, headers, errors, the same as JSON
assembly       builds the parts, and lists the sections
inbox/ …       the sections, each with its rows and handlers; templates/ has their HTML
people, sessions, login, oidc, limits      who may come in
idempotency    a request that is sent twice acts once
audit          the signed log of views and acts
database       the SQLite file, which topics can rebuild
"""
