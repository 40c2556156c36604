"""Longarm's robot side: executes action chunks from a far policy at a steady rate and keeps the arm safe."""

__version__ = "0.1.0"
