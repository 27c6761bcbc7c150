# Sourced by demo.sh and test.sh: how does mach get into .venv, and only when something changed?
# shellcheck shell=bash

unset CDPATH # with it, cd may go elsewhere and print where

refuse() {
    printf '%s\n' "$@" >&2
    exit 2
}

# Python's version as "3 11", or nothing where it does not run (a pyenv shim, say).
version_of() {
    "$1" -c 'import sys; print("%d %d" % sys.version_info[:2])' 2>/dev/null || true
}

# torch 2.13 and Hydra 1.3 meet between these: Hydra 1.3 cannot start under 3.14.
is_supported() {
    case "$(version_of "$1")" in
        '3 11' | '3 12' | '3 13') return 0 ;;
        *) return 1 ;;
    esac
}

# Prints the Python to make .venv with.
find_python() {
    local candidate seen=()
    if [ -n "${PYTHON:-}" ]; then
        if is_supported "$PYTHON"; then
            printf '%s\n' "$PYTHON"
            return
        fi
        seen+=("$PYTHON")
    else
        for candidate in .venv/bin/python python3.13 python3.12 python3.11 python3; do
            if is_supported "$candidate"; then
                printf '%s\n' "$candidate"
                return
            fi
            seen+=("$candidate")
            # An environment that is there is used or refused, never replaced.
            if [ "$candidate" = .venv/bin/python ] && [ -e "$candidate" ]; then break; fi
        done
    fi
    local found=''
    for candidate in "${seen[@]}"; do
        local version
        version="$(version_of "$candidate")"
        if [ -n "$version" ]; then found+="${found:+, }$candidate is ${version/ /.}"; fi
    done
    refuse "mach needs Python 3.11, 3.12 or 3.13; ${found:-none of ${seen[*]} runs}." \
        "Name another with PYTHON=/path/to/python3.12; if .venv is the one that does not fit, remove it first."
}

# What decides whether the installation is up to date. pyvenv.cfg names the Python; the place
# counts because an environment does not survive being moved.
fingerprint() {
    { pwd && cat pyproject.toml constraints.txt .venv/pyvenv.cfg; } 2>/dev/null | cksum
}

is_installed() {
    [ -x .venv/bin/mach ] && [ "$(cat ".venv/.mach-installed-$1" 2>/dev/null)" = "$(fingerprint)" ]
}

# setup NAME: changes to the repository root and installs mach there; NAME is base or test.
setup() {
    local name="$1" python requirement='.'
    case "${PYTHON:-}" in [!/]*/*) PYTHON="$PWD/$PYTHON" ;; esac
    cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
    python="$(find_python)" || exit
    if [ -e .venv/bin/python ] && [ "$(version_of .venv/bin/python)" != "$(version_of "$python")" ]; then
        refuse ".venv was not made with $python. Remove .venv to have it made anew."
    fi
    # What the tests need includes what a run needs.
    if is_installed test || is_installed "$name"; then return; fi

    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            local version
            version="$(version_of "$python")"
            refuse "$python cannot make a virtual environment: its venv module is missing." \
                "On Debian and Ubuntu: apt install python${version/ /.}-venv"
        fi
        "$python" -m venv .venv
    fi

    echo "Installing mach and what it needs into .venv; the first time this takes minutes." >&2
    if [ "$name" = test ]; then requirement='.[test]'; fi
    # The two variables hold for the tools that build packages, under old and new pip. They are
    # lists split at blanks, hence relative to the root.
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
        .venv/bin/python -m pip install -q --disable-pip-version-check \
        -c constraints.txt -e "$requirement"
    rm -f .venv/.mach-installed-*
    fingerprint >".venv/.mach-installed-$name"
}
