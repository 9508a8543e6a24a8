"""OpenAI-compatible HTTP in front of the bus. Knows no model, no tokenizer, no torch. `python -m gateway`"""
