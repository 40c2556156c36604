"""Exit codes of Longarm's commands. A supervisor must not restart a process that ended with CANNOT_START."""

DONE = 0
FAILED = 1
BAD_USAGE = 2
CANNOT_START = 3
# The doctor found nothing that keeps a run from working, and something to mind
WARNINGS = 4
# The shell's convention for SIGINT: a person ended it before it could stop gently
INTERRUPTED = 130
