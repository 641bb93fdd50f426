# The server: functions of ./dev, which sources this from the repository's root.
#
# target/server/venv   what the tests by other clients need from PyPI: clients.txt

# The arguments are the program's; without a model it is the small one of ./dev chat.
server_run() {
  local argument found=
  for argument in "$@"; do
    case "$argument" in -h | --help | -V | --version | --model | --model=* | --random-weights | --random-weights=*) found=given ;; esac
  done
  if [[ -z $found ]]; then
    if (chat_model); then
      chat_model
      set -- --model "$found" "$@"
    else
      say "so the server has the model of the repository that continues texts (--model gla)"
    fi
  fi
  # A first build takes minutes, which cargo tells on standard error.
  cargo build --release -p latten-server
  cargo run --release --quiet -p latten-server -- "$@" &
  local server=$!
  # Who asks this script to end means the server, which ends its answers first.
  trap 'kill -TERM "$server" 2>/dev/null' TERM
  while kill -0 "$server" 2>/dev/null; do
    found=0
    wait "$server" || found=$?
  done
  return "$found"
}

# Python's packages for clients that are not ours. Returns 1 where they are not to be had.
server_clients() {
  local venv=target/server/venv list=examples/server/tests/clients.txt
  cmp -s "$list" "$venv/installed.txt" && return
  say "installing the clients of $list into $venv"
  rm -rf "$venv"
  mkdir -p target/server
  python3 -m venv "$venv" >&2 || { say "python3 has no venv"; return 1; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$list" >&2 || { say "pip failed (its words are above)"; return 1; }
  cp "$list" "$venv/installed.txt"
}

# --short: the tests in Rust alone. What the others need is installed, or they are skipped with the reason.
server_test() {
  local short=
  [[ ${1:-} == --short ]] && short=1 && shift
  cargo fmt --check -p latten-server
  cargo clippy -p latten-server --all-targets -- -D warnings
  cargo_checked test --release -p latten-server "$@"
  [[ -z $short ]] || return 0
  if ! server_clients; then
    say "so the tests by other clients are skipped"
    return
  fi
  mkdir -p "$browser"
  need_chromium
  cargo build --release -p latten-server
  target/server/venv/bin/python examples/server/tests/clients.py
}
