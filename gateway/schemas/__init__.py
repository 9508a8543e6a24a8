"""What a request may say. What is not honoured is refused by name, never ignored; harmless hints are accepted."""
