# Sourced by quickstart.sh and test.sh: makes, reuses or repairs the virtual environment .venv.
#
#   setup_environment ""      what training and evaluation need
#   setup_environment dev     also what the tests need
#
# $PYTHON chooses the interpreter of a new environment (default: python3). Packages that are
# installed already and work are kept, so a different PyTorch may be put into .venv beforehand.

REPOSITORY="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$REPOSITORY/.venv"
VENV_PYTHON="$VENV/bin/python"
# Exists while packages are being installed: if found at the start, the last set-up was cut off.
UNFINISHED="$VENV/.eomt_d2-unfinished"
STEP=""

export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONHOME

step() {
    STEP="$1"
    echo "$1"
}

fail() {
    echo "error: $*" >&2
    exit 1
}

setup_environment() {
    local extras="$1"
    cd -- "$REPOSITORY"
    trap 'report_interruption $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    wait_for_other_setups
    if environment_is_complete "$extras"; then
        echo "The virtual environment $VENV is complete."
    else
        step "[1/4] Virtual environment $VENV"
        make_virtual_environment
        repair_packages "$extras"
        ensure_pip
        touch -- "$UNFINISHED"
        step "[2/4] PyTorch (the first time this downloads several gigabytes)"
        install_torch
        step "[3/4] Detectron2"
        "$VENV_PYTHON" tools/install_detectron2.py
        step "[4/4] eomt_d2 and its requirements"
        install_package "$extras"
        "$VENV_PYTHON" -W ignore tools/check_environment.py "$extras"
        stamp "$extras" > "$(stamp_file "$extras")"
        rm -f -- "$UNFINISHED"
    fi
    trap - EXIT INT TERM
    if [ -n "${LOCK:-}" ]; then exec 9>&-; fi
}

# Two set-ups of one clone would write over each other.
wait_for_other_setups() {
    command -v flock > /dev/null || return 0
    LOCK="$REPOSITORY/.venv.lock"
    exec 9> "$LOCK"
    flock --nonblock 9 && return
    echo "Another set-up of this clone is running; waiting for it to finish ..."
    flock 9
}

report_interruption() {
    if [ "$1" -ne 0 ] && [ -n "$STEP" ]; then
        echo "The set-up stopped in step $STEP" >&2
        echo "Run the same command again: it keeps what is complete and repairs the rest." >&2
    fi
}

# A checksum of everything that decides what has to be installed.
stamp() {
    cat setup.py tools/setup_env.sh tools/install_detectron2.py tools/detectron2_wheel/*.py \
        | cksum | tr ' ' '-' | sed "s/\$/-$1/"
}

stamp_file() {
    echo "$VENV/.eomt_d2-complete-${1:-base}"
}

environment_is_complete() {
    [ ! -e "$UNFINISHED" ] || return 1
    [ "$(cat -- "$(stamp_file "$1")" 2> /dev/null)" = "$(stamp "$1")" ] || return 1
    "$VENV_PYTHON" -W ignore tools/check_environment.py "$1" 2> /dev/null
}

make_virtual_environment() {
    local python="${PYTHON:-python3}"
    local supported='import sys; sys.exit(sys.version_info < (3, 10))'
    if ! "$VENV_PYTHON" -c "$supported" 2> /dev/null; then
        command -v "$python" > /dev/null \
            || fail "there is no program $python; install Python 3.10 or newer, or set \$PYTHON."
        "$python" -c "$supported" \
            || fail "$("$python" --version) is too old; install Python 3.10 or newer and run" \
                "PYTHON=/path/to/it bash ${0##*/}."
        "$python" -c 'import ensurepip, venv' 2> /dev/null \
            || fail "$python lacks the modules venv and ensurepip; install them (on Debian and" \
                "Ubuntu the package python3-venv) or set \$PYTHON."
        # Only the interpreter's links: packages that are there already are worth keeping.
        rm -f -- "$VENV"/bin/python "$VENV"/bin/python3*
        "$python" -m venv "$VENV" || fail "$python could not make $VENV; see its words above."
    fi
}

# pip believes a package to be installed as soon as its metadata is there, so packages that an
# interrupted pip left half-written have to be found by their files.
repair_packages() {
    if [ -e "$UNFINISHED" ] \
        || ! "$VENV_PYTHON" -W ignore tools/check_environment.py "$1" 2> /dev/null; then
        "$VENV_PYTHON" tools/remove_broken_packages.py
    fi
}

ensure_pip() {
    # RECORD is the last file that is written when pip gets installed.
    if ! compgen -G "$VENV/lib/python3.*/site-packages/pip-*.dist-info/RECORD" > /dev/null \
        || ! "$VENV_PYTHON" -m pip --version > /dev/null 2>&1; then
        rm -rf -- "$VENV"/lib/python3.*/site-packages/pip "$VENV"/lib/python3.*/site-packages/pip-*
        "$VENV_PYTHON" -m ensurepip --default-pip
    fi
}

install_torch() {
    "$VENV_PYTHON" -W ignore -c 'import torch, torchvision' 2> /dev/null && return
    # Byte code is left to the first import: most of these thousands of files are never imported.
    "$VENV_PYTHON" -m pip install --no-compile torch torchvision
    "$VENV_PYTHON" -W ignore -c 'import torch, torchvision' && return
    "$VENV_PYTHON" -m pip install --no-compile --force-reinstall torch torchvision
}

install_package() {
    local target="$REPOSITORY${1:+[$1]}"
    # Leaves out pip's list of what is there already, and setuptools' remark on editable installs.
    "$VENV_PYTHON" -m pip install --no-compile --editable "$target" 2>&1 | awk '
        /^Requirement already satisfied/ { next }
        /BuildBackendWarning/ { skip = 11 }
        skip > 0 { skip--; next }
        { print; fflush() }'
}
