"""Who else hears of a run: callbacks, and the loggers that are callbacks."""
