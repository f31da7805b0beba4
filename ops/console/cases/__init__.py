"""Cases: payments and alerts put together, with notes, files and the history of every change."""
