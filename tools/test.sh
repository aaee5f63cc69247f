#!/usr/bin/env bash
# Set up .venv if needed, then run the tests. Arguments are pytest's; paths count from the clone:
#
#   bash tools/test.sh tests/modeling -k matcher
#
# Without arguments all tests run, in two processes of one thread each: most of them are too small
# for a second thread to help. $TEST_PROCESSES sets another number.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_environment dev

# Tests download nothing; without this, timm and transformers would ask the network first.
export HF_HUB_OFFLINE=1
if [ "$#" -eq 0 ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
    set -- --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile
else
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-2}"
fi

mkdir -p output
log="$REPOSITORY/output/tests.log"
status=0
"$VENV_PYTHON" -m pytest "$@" 2>&1 | tee -- "$log" || status=$?
if [ "$status" -eq 0 ]; then
    echo "Tests passed. Log: $log"
else
    echo "Tests failed (pytest's exit status $status). Log: $log"
fi
exit "$status"
