"""The pipeline from payments and outcomes to profiles."""
