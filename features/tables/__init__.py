"""Any table of payments, CSV or Parquet and larger than memory, becomes a history.

mapping     which column of the table is which field, in a TOML file
sources     opens the files of a table and yields their rows in parts
columns/    a column's texts, numbers and times, of whatever type it is
zones       local times to UTC
fields      a part's columns become the columns of a history
refusals    a row that cannot become a payment is refused, with its reason
labels      when a label was known, where a table does not say so
ordered_rows  rows in order of time without ids that are used twice, out of core: DuckDB
conversion  all of these in one pass, and a report
guessing/   a first mapping from the first rows of a file
"""
