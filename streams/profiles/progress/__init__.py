"""How far the profiles are: when payments arrived, the watermark of the payments in them, and how complete they are."""
