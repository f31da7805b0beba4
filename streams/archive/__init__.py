"""Topics as Parquet files, and histories read from them."""
