"""How far the profiles are: when payments arrived, the watermark of what is in them, and how complete they are."""
