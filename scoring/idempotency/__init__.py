"""The same payment gets the same decision: recent answers, and claims on payment ids."""
