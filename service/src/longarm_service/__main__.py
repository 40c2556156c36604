"""Lets `python -m longarm_service` do what longarm-service does."""

from longarm_service.cli import main

main()
