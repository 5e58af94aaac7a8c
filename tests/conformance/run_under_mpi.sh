#!/bin/sh
# Runs a test program under mpirun in a network namespace of its own, with only a loopback:
#   run_under_mpi.sh RANKS[,NODES] PROGRAM ARGUMENTS...
# RANKS ranks are split evenly over NODES pretended nodes. Ranks other than 0 print only when they fail. Ends with 77
# where MPI or the namespace is not to be had. SHUNT_TEST_MPIRUN names another mpirun.
set -u
ranks=${1%,*}
nodes=1
case $1 in *,*) nodes=${1#*,} ;; esac
shift
mpirun=${SHUNT_TEST_MPIRUN:-mpirun}
if ! command -v "$mpirun" >/dev/null; then
  echo "skipped: $mpirun is not installed" >&2
  exit 77
fi
if ! unshare --net true 2>/dev/null; then
  echo "skipped: no network namespace can be made here (unshare --net needs root)" >&2
  exit 77
fi

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/rank" <<'RANK'
#!/bin/sh
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-0}}}
if [ "$SHUNT_TEST_NODES" -gt 1 ]; then
  SHUNT_NODE=node$((rank * SHUNT_TEST_NODES / SHUNT_TEST_RANKS))
  export SHUNT_NODE
fi
[ "$rank" = 0 ] && exec "$@"
"$@" >"$SHUNT_TEST_SCRATCH/output.$rank" 2>&1
status=$?
if [ $status -ne 0 ]; then
  echo "rank $rank ended with $status:"
  tail -n 40 "$SHUNT_TEST_SCRATCH/output.$rank"
fi
exit $status
RANK
chmod +x "$scratch/rank"

export SHUNT_TEST_NODES="$nodes" SHUNT_TEST_RANKS="$ranks" SHUNT_TEST_SCRATCH="$scratch" SHUNT_CONFORMANCE_TRANSPORT=mpi
export SHUNT_CONFORMANCE_FOLDER="$scratch"
if "$mpirun" --version 2>/dev/null | grep -q 'Open MPI'; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  # Ranks of one pretended node may use the shared memory of MPI; SHUNT_TEST_MCA can forbid it.
  # shellcheck disable=SC2086 # words
  set -- "$mpirun" --oversubscribe --bind-to none --mca oob_tcp_if_include lo --mca btl_tcp_if_include lo \
    ${SHUNT_TEST_MCA:-} -np "$ranks" "$scratch/rank" "$@"
else
  set -- "$mpirun" -np "$ranks" "$scratch/rank" "$@"
fi
# A name of its own, so that the ranks' host name resolves without a network.
unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@"
