"""May they: policy engines behind one small port.

`base` is the port and the one reading of what a policy answers; `embedded` evaluates Rego in process;
`operator` decides for whoever administers the machine itself.
"""
