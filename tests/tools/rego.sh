#!/usr/bin/env bash
# Checks the policy bundle, and the Rego of the OPA configuration that we ship, with a real OPA and with Regal:
# types against the input's schema, format, tests, lint.
# Where Go is, both are built from the modules beside this script, pinned by hash in their go.sum; elsewhere
# they are taken from PATH.
set -euo pipefail

tools=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$tools/../.." && pwd)
bin="$root/.tools/bin"

# build NAME MODULE_DIRECTORY PACKAGE: unless a binary newer than its go.sum is there.
build() {
  if [ "$bin/$1" -nt "$2/go.sum" ]; then
    return
  fi
  echo "building $1 (a few minutes, once)" >&2
  (cd "$2" && go build -mod=readonly -buildvcs=false -o "$bin/$1" "$3")
}

# find NAME: the built binary, or the one on PATH.
find_tool() {
  if [ -x "$bin/$1" ]; then
    echo "$bin/$1"
  elif command -v "$1"; then
    return
  else
    echo "$1 is missing: install Go 1.26 or newer, or put $1 on PATH" >&2
    return 1
  fi
}

if command -v go >/dev/null; then
  mkdir -p "$bin"
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
