"""Repeatable measurements of the bus, side by side with peers. Not part of the wheel."""
