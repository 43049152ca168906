"""May they: policy engines behind one small port.

`base` is the port and the one reading of what a policy answers; `embedded` evaluates Rego in process; `opa`
asks an OPA (`opa_address` says where one may stand, `opa_client` is the HTTP); `operator` decides for whoever
administers the machine itself.
"""
