"""KKP, the keyless KMS proxy: one policy-gated door in front of every key management system."""

__version__ = "0.1.0"
