"""Measurements: Longarm against LeRobot's own async pair, the tunnel, the codec. Nothing here is installed."""
