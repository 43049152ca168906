"""The signing keys: which key signs now, which ones are published, and when the next one takes over.

`state` and `jwks` are pure: every answer is a function of the rows and the time. `rotation` is the service
that alone holds private keys. `base` is the port through which it keeps its rows.
"""
