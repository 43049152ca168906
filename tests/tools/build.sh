# For the scripts beside this one: tools that are built from the modules here, pinned by hash in their go.sum, where
# Go is, and that are taken from PATH elsewhere.

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$tools/../.." && pwd)
bin="$root/.tools/bin"
mkdir -p "$bin"

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
