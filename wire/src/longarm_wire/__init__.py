"""What Longarm's service and edge share: protocol, codecs, specs, error reasons, and how a process is run."""

__version__ = "0.1.0"
