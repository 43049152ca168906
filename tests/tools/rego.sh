#!/usr/bin/env bash
# Checks the policy bundle, and the Rego of the OPA configuration that we ship, with a real OPA and with Regal:
# types against the input's schema, format, tests, lint.
# Where Go is, both are built from the modules beside this script, pinned by hash in their go.sum; elsewhere
# they are taken from PATH.
set -euo pipefail

. "$(dirname "$0")/build.sh"

if command -v go >/dev/null; then
  build opa "$tools" github.com/open-policy-agent/opa
  build regal "$tools/regal" github.com/open-policy-agent/regal
fi
opa=$(find_tool opa)
regal=$(find_tool regal)

# Older ones accept an altered bundle (GHSA-g2pf-6v5v-qcc8).
oldest=1.21.3
version=$("$opa" version | sed -n 's/^Version: //p')
if ! printf '%s\n' "$oldest" "$version" | sort -VC; then
  echo "$opa is $version; at least $oldest is needed" >&2
  exit 1
fi

cd "$root"
"$opa" check --strict --schema policy/schemas/input.json policy
"$opa" fmt --fail -d policy
"$opa" test policy
"$regal" lint policy
"$opa" check --strict deploy/opa/system
"$opa" fmt --fail -d deploy/opa/system
"$opa" test deploy/opa/system
"$regal" lint deploy/opa/system
