#!/bin/sh
# Runs a program with ranks of its own, then (mpi) under mpirun, and wants the same lines:
#   run_program.sh local|mpi PROGRAM EXPECTED-LINE ARGUMENTS...
# Ends with 77 where mpirun or a network namespace is not to be had, once the local part has passed.
set -u
launchers=$1
program=$2
expected=$3
shift 3
fail() {
  echo "failed: $*" >&2
  exit 1
}

local=$("$program" --ranks 4 "$@") || fail "4 local ranks ended with $?: $local"
echo "$local" | grep -q -- "$expected" || fail "4 local ranks did not print '$expected': $local"
"$program" --nonsense 2>/dev/null
[ $? -eq 2 ] || fail "a wrong option did not end with 2"
"$program" --only no-such-name 2>/dev/null
[ $? -eq 2 ] || fail "a name that nothing has did not end with 2"

[ "$launchers" = mpi ] || exit 0

mpi=$("$(dirname "$0")/../conformance/run_under_mpi.sh" 4 "$program" "$@")
status=$?
[ $status -eq 77 ] && exit 77
[ $status -eq 0 ] || fail "mpirun -np 4 ended with $status: $mpi"
echo "$mpi" | grep -q -- "$expected" || fail "mpirun -np 4 did not print '$expected': $mpi"
echo "$mpi" | grep -q "4 ranks of an MPI launcher" || fail "the ranks were not those of mpirun: $mpi"
[ "$(echo "$mpi" | grep -c -- "$expected")" -eq 1 ] || fail "more than one rank printed: $mpi"
