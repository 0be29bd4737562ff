"""Doors to other evaluation tools: LLaSO's tasks as they are asked and scored there, by the same code as here."""
