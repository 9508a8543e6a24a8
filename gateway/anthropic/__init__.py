"""Anthropic's Messages API: its requests become chat requests, and what is made of them its content blocks."""
