#!/usr/bin/env bash
# Reads what deploy/ has for containers with the code that would run it, and holds what kustomize makes of it to the
# schemas of Kubernetes' own OpenAPI: of the oldest release that it is for, where sidecars came, and of the newest.
set -euo pipefail

. "$(dirname "$0")/build.sh"

if command -v go >/dev/null; then
  build deploycheck "$tools/deploy" .
fi
deploycheck=$(find_tool deploycheck)

cd "$root"
"$deploycheck" deploy >.tools/kubernetes.yaml
.venv/bin/kubernetes-validate --strict --quiet -k 1.29 -k 1.37 .tools/kubernetes.yaml
