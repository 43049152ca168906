"""The Python client of KKP: verifies tokens offline, encrypts and decrypts, streams large files.

What it does is the contract in sdk/README.md, which the TypeScript client keeps as well.
"""
