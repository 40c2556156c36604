"""The doctor: every check a person would make before a run, what the link can do, and what to set."""
