"""The systems that the product is compared with."""
