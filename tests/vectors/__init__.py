"""The cases of sdk/vectors that are about verdicts, and what makes them (`__main__`)."""
