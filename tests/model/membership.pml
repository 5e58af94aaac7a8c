/* How survivors agree on who is left (src/transport/membership.cpp): one agreement, its ballots and its quorums.
 *
 * Every rank owns a register: the ballot it promised, the ballot it accepted and what, the ballot it proposes and what.
 * It puts the whole register to each other rank; here another rank's view of it becomes the register as it is now at any
 * moment, or never, which is a slow rank, a stopped one, a cut link and a lost register in one. Nothing is timed: any
 * rank may believe at any time that it is the one to propose, and may propose again with a higher ballot.
 *
 * A choice is a set of members. A proposer that is free to choose takes those that have promised. A rank decides when a
 * quorum in its view has accepted one ballot; another rank may then learn the decision from it, which adds nothing here.
 *
 * Holds: no two ranks decide on different sets. So two sides of a partition never both go on.
 *
 * -DN=ranks -DBALLOTS=ballots in all, numbered from 1: b belongs to rank b % N. -DPROPOSERS=ranks that may propose.
 * Mutations, each of which must make the check fail:
 *   -DANY_HALF     half of the ranks are enough, also without the lowest
 *   -DFORGETFUL    a proposer chooses freely although a rank has accepted something
 *   -DFAITHLESS    a rank accepts a ballot below the one it promised
 */
#ifndef N
#define N 3
#endif
#ifndef BALLOTS
#define BALLOTS 4
#endif
#ifndef PROPOSERS
#define PROPOSERS 2
#endif

typedef Register {
  byte promised;
  byte accepted;
  byte accepted_choice; /* a set: bit r for rank r */
  byte proposed;
  byte proposed_choice; /* 0: it only asks for promises */
};
typedef View {
  Register at[N]; /* at[me] of rank me is its register itself */
};
View view[N];
byte decided[N]; /* 0: not yet */

#define OWN view[me].at[me]

/* count and lowest of a set being gathered */
#ifdef ANY_HALF
#define IS_QUORUM (2 * count >= N)
#else
#define IS_QUORUM (2 * count > N || (2 * count == N && (set & 1)))
#endif

proctype Rank(byte me) {
  byte peer, count, set, best, choice, ballot;
end:
  do
  :: /* the register of another arrives */
    atomic {
      peer = 0;
      do
      :: peer < N - 1 -> peer++
      :: break
      od;
      if
      :: peer != me ->
        view[me].at[peer].promised = view[peer].at[peer].promised;
        view[me].at[peer].accepted = view[peer].at[peer].accepted;
        view[me].at[peer].accepted_choice = view[peer].at[peer].accepted_choice;
        view[me].at[peer].proposed = view[peer].at[peer].proposed;
        view[me].at[peer].proposed_choice = view[peer].at[peer].proposed_choice;
        /* as an acceptor */
        if
        :: view[me].at[peer].proposed > OWN.promised -> OWN.promised = view[me].at[peer].proposed
        :: else
        fi;
        if
        :: view[me].at[peer].proposed_choice != 0 && OWN.accepted != view[me].at[peer].proposed &&
#ifdef FAITHLESS
           true ->
#else
           view[me].at[peer].proposed == OWN.promised ->
#endif
          OWN.accepted = view[me].at[peer].proposed;
          OWN.accepted_choice = view[me].at[peer].proposed_choice
        :: else
        fi
      :: else
      fi;
      peer = 0
    }
  :: me < PROPOSERS && OWN.proposed <= BALLOTS ->
    /* a new ballot, above all it has seen */
    atomic {
      ballot = (me == 0 -> N : me);
      do
      :: ballot <= OWN.promised -> ballot = ballot + N
      :: else -> break
      od;
      if
      :: ballot <= BALLOTS ->
        OWN.proposed = ballot;
        OWN.proposed_choice = 0;
        OWN.promised = ballot
      :: else
      fi;
      ballot = 0
    }
  :: me < PROPOSERS && OWN.proposed != 0 && OWN.proposed_choice == 0 && OWN.promised == OWN.proposed ->
    /* enough promises? */
    atomic {
      peer = 0; count = 0; set = 0; best = 0; choice = 0;
      do
      :: peer < N ->
        if
        :: view[me].at[peer].promised == OWN.proposed ->
          count++;
          set = set | (1 << peer);
          if
          :: view[me].at[peer].accepted > best ->
            best = view[me].at[peer].accepted;
            choice = view[me].at[peer].accepted_choice
          :: else
          fi
        :: else
        fi;
        peer++
      :: else -> break
      od;
      if
      :: IS_QUORUM ->
#ifdef FORGETFUL
        choice = set;
#else
        if
        :: best == 0 -> choice = set
        :: else
        fi;
#endif
        OWN.proposed_choice = choice;
        OWN.accepted = OWN.proposed;
        OWN.accepted_choice = choice
      :: else
      fi;
      peer = 0; count = 0; set = 0; best = 0; choice = 0
    }
  :: decided[me] == 0 ->
    /* has a quorum accepted one ballot? */
    atomic {
      ballot = 1;
      do
      :: ballot <= BALLOTS && decided[me] == 0 ->
        peer = 0; count = 0; set = 0; choice = 0;
        do
        :: peer < N ->
          if
          :: view[me].at[peer].accepted == ballot ->
            count++;
            set = set | (1 << peer);
            choice = view[me].at[peer].accepted_choice
          :: else
          fi;
          peer++
        :: else -> break
        od;
        if
        :: IS_QUORUM && choice != 0 ->
          decided[me] = choice;
          peer = 0;
          do
          :: peer < N -> assert(decided[peer] == 0 || decided[peer] == choice); peer++
          :: else -> break
          od
        :: else
        fi;
        ballot++
      :: else -> break
      od;
      peer = 0; count = 0; set = 0; choice = 0; ballot = 0
    }
  od
}

init {
  atomic {
    byte one = 0;
    do
    :: one < N -> run Rank(one); one++
    :: else -> break
    od
  }
}
