"""The paper's experiments at any scale, and their reports."""
