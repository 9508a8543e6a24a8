"""/openapi.json: the routes that there are, the requests that they validate, and the answers, as shapes for people and
tests. Nothing of it is needed to answer a request."""
