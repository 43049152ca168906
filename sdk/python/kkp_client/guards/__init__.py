"""Guards turn a request into a verified caller: one module for each framework, imported by who uses it."""
