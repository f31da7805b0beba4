"""Renders pages: HTML of their content (`templates`), charts, and an analyst's words for signals."""
