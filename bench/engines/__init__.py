"""Measures what the engines are made of."""
