#!/usr/bin/env bash
# The main job from a fresh clone: set up .venv, make the shapes data, train EoMT, evaluate it and
# write pictures. Arguments are those of tools/quickstart.py, for instance --model mask2former or
# --compare.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_environment ""
exec "$VENV_PYTHON" tools/quickstart.py "$@"
