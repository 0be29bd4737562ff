"""Estimates what a run would cost before it starts: parameters, FLOPs, memory and steps."""
