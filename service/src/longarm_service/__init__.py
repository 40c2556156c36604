"""Longarm's GPU side: loads LeRobot policies and answers observations with action chunks over gRPC."""

__version__ = "0.1.0"
