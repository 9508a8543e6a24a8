"""OpenAI's Responses API: its requests become chat requests, and what is made of them items. Stored ones are durable:
they outlive their gateway, and any other tells of them."""
