# shellcheck shell=sh
# To be sourced by the scripts: lines that say what goes on, and the total time at the end. A script that has to clean
# up defines its own clean_up.

started=$(date +%s)

say() {
    printf '%s\n' "$@" >&2
}

# Says what runs, and runs it.
step() {
    say "" "== $*"
    "$@"
}

clean_up() {
    :
}

finish() {
    status=$?
    trap - EXIT
    clean_up
    seconds=$(($(date +%s) - started))
    outcome=done
    [ "$status" -eq 0 ] || outcome="failed with exit code $status"
    say "${0##*/}: $outcome after $((seconds / 60)) min $((seconds % 60)) s"
    exit "$status"
}

trap finish EXIT
# Not every shell runs the trap above when a signal ends it.
trap 'exit 130' INT
trap 'exit 143' TERM
