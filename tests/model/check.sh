#!/bin/sh
# Model-checks the signalling and buffer-reuse protocol of AllToAll (protocol.pml), what crosses between homes
# (crossing.pml) and the agreement on the surviving ranks (membership.pml): each must hold, and every mutation of it must be found wrong, or the check would prove nothing.
# Exits 1 where one of them does not behave so.
# CC (default gcc) compiles the checkers.
set -u
models=$(cd "$(dirname "$0")" && pwd)
model=$models/protocol.pml
for tool in spin "${CC:=gcc}"; do
  command -v "$tool" > /dev/null && continue
  echo "check.sh: '$tool' is not installed; it comes with the Debian and Ubuntu package '${tool%%-*}'" >&2
  exit 1
done
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

# check <holds|breaks> <what it is> <spin options...>: one exhaustive search.
check() {
  expected=$1
  what=$2
  shift 2
  rm -rf "$work/run" && mkdir "$work/run" && cd "$work/run" || exit 1
  # Spin's generated code is its own affair: no warnings.
  if ! { spin -a "$@" "$model" && "$CC" -w -O1 -DSAFETY -DCOLLAPSE -DMEMLIM=3000 -o pan pan.c; } > build.log 2>&1; then
    outcome="did not build: $(tail -n 1 build.log)"
  else
    ./pan -m200000 > run.log 2>&1
    if grep -q 'errors: 0' run.log && ! grep -Eq 'max search depth too small|out of memory|Search not completed' run.log; then
      outcome=holds
    elif grep -Eq '^pan:[0-9]+: (assertion violated|invalid end state)' run.log; then
      outcome=breaks
    else
      outcome="gave no answer: $(tail -n 1 run.log)"
    fi
  fi
  if [ "$outcome" = "$expected" ]; then
    passed=$((passed + 1))
    result=ok
  else
    failed=$((failed + 1))
    result="FAILED, expected: $expected"
  fi
  detail=$(sed -n -e 's/^pan:[0-9]*: \([a-z ]*\).*/ by: \1/p' -e 's/^ *\([0-9]*\) states, stored$/ in \1 states/p' run.log 2> /dev/null | tr -s ' \n' ' ')
  echo "$result - $what: $outcome${detail:+,$detail}"
}

check holds "2 ranks, 3 steps, every assignment" -DN=2 -DEPOCHS=3
check holds "2 ranks, 4 steps, positions written again by combine" -DN=2 -DEPOCHS=4 -DREWRITE
check holds "3 ranks, 3 steps, stores at once" -DN=3 -DEPOCHS=3 -DSTRONG -DFEW_MODES -DREWRITE

for ranks in "2 ranks:-DN=2" "3 ranks, stores at once:-DN=3 -DSTRONG -DFEW_MODES"; do
  name=${ranks%%:*}
  options=${ranks#*:}
  # Word splitting of $options is wanted.
  check breaks "$name, mutation: combine_recv skips owners of none of its tokens" $options -DEPOCHS=3 -DSKIP_UNUSED
  check breaks "$name, mutation: word raised before the payload" $options -DEPOCHS=3 -DWORD_FIRST
  check breaks "$name, mutation: no settling after a void step" $options -DEPOCHS=3 -DNO_SETTLE
done

model=$models/crossing.pml
check holds "between homes of 2 and 1 ranks, 3 steps" -DN=3 -DEPOCHS=3
check holds "between homes of 2 and 1 ranks, flat, 3 steps" -DN=3 -DEPOCHS=3 -DFLAT
check holds "between homes of 2 and 2 ranks, 2 steps" -DN=4 -DEPOCHS=2
check breaks "between homes, mutation: results returned before the home is done" -DN=3 -DEPOCHS=2 -DHASTY_RETURN
check breaks "between homes, mutation: combine_recv skips other homes" -DN=3 -DEPOCHS=2 -DSKIP_RETURN
check breaks "between homes, mutation: word passed on before the message" -DN=3 -DEPOCHS=2 -DPASS_FIRST
check breaks "between homes, mutation: no settling after a void step" -DN=3 -DEPOCHS=3 -DNO_SETTLE

model=$models/membership.pml
check holds "agreement of 2 ranks" -DN=2 -DBALLOTS=4
check holds "agreement of 3 ranks, 2 of which propose" -DN=3 -DBALLOTS=3
check breaks "agreement, mutation: half without the lowest rank is enough" -DN=2 -DBALLOTS=3 -DANY_HALF
check breaks "agreement, mutation: what was accepted is not proposed again" -DN=3 -DBALLOTS=3 -DFORGETFUL
check breaks "agreement, mutation: a promise is not kept" -DN=3 -DBALLOTS=3 -DFAITHLESS

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
