# Sourced by the scripts beside it, which set $root: `prepare SET` makes $root/.venv hold Spool with its
# extra SET ("core" for none), and does nothing when it already does.

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# A usable environment has a new enough Python, has pip, and was made here: its scripts name its path, so a
# moved checkout needs a new one. A $PYTHON other than the one it was made from wants a new one as well.
usable() {
    "$root/.venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    head -n 2 "$root/.venv/bin/pip" 2>/dev/null | grep -qF "$root/.venv/" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(identity "$PYTHON")" = "$(identity "$root/.venv/bin/python")" ]
}

identity() {
    "$1" -c 'import sys; print(sys.base_prefix, sys.version)' 2>/dev/null || echo "$1 does not run"
}

create() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null 2>&1 || fail "'$python' not found; install Python 3.11 or newer, or set PYTHON"
    version=$("$python" -c 'import platform; print(platform.python_version())') || fail "'$python' does not run"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$python' is Python $version; Spool needs 3.11 or newer: set PYTHON to one"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$python' ($version) lacks the venv module; install it (Debian, Ubuntu: python3-venv) or set PYTHON"
    "$python" -m venv --clear "$root/.venv" || fail "'$python' ($version) could not create $root/.venv"
}

prepare() {
    usable || create
    stamp=$root/.venv/.spool-$1
    state=$(cksum <"$root/pyproject.toml")
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
        return
    fi
    case $1 in
        core) what=$root ;;
        *) what=$root[$1] ;;
    esac
    echo "${0##*/}: installing into .venv ($1)" >&2
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what" ||
        fail "pip could not install the dependencies ($1)"
    echo "$state" >"$stamp"
}
