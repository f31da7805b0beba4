"""Keep, repair, rebuild or erase what is stored."""
