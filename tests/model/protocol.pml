/* The signalling and buffer-reuse protocol of AllToAll (docs/architecture.md, "The step"), without its data: a payload
 * is the number of the epoch it belongs to, so that a reader of a payload that was not yet written, or was already
 * overwritten, sees another number.
 *
 * Every buffer exists once. For an ordered pair (s, d): an announcement and its word in d's memory, written by s; and
 * positions and their word in s's memory, written by d. For a push also two words, and d's rows, written by s. Tokens of
 * s are written by s and read by every owner, expert results of d are written by d and read by every source.
 *
 * Memory. Each observer has its own view of what another rank stores: a store travels through one buffer per ordered
 * pair (writer, observer). A word is a release store: it takes effect after everything stored before it. Payloads wait
 * for nothing: one may overtake words and payloads of other places that were stored before it, so a payload of the next
 * step may be visible before a word of this one. With -DSTRONG stores take effect at once (for 3 ranks, where the
 * buffers would make too many states).
 *
 * Readers read every payload twice, first when they may and last when they still may: an assertion that fails at the
 * second read means that a buffer was used again too early.
 *
 * Not modelled: a rank's own part (no other rank takes part in it), deadlines, the death of a rank.
 *
 * -DN=ranks -DEPOCHS=steps. -DFEW_MODES: three assignments of how rows go, not all. -DREWRITE: combine_send writes positions again that a push has delivered before.
 * Mutations, each of which must make the check fail:
 *   -DSKIP_UNUSED   combine_recv does not wait for ranks that own none of its tokens
 *   -DWORD_FIRST    the announcement's word is raised before its payload
 *   -DNO_SETTLE     dispatch_send after a void step does not wait until everybody has left that step
 */
#ifndef N
#define N 2
#endif
#ifndef EPOCHS
#define EPOCHS 3
#endif

/* Places of a pair (writer, observer): payloads, then words. */
#define TOKENS 0
#define ANNOUNCEMENT 1
#define POSITIONS 2
#define ROWS 3
#define RESULTS 4
#define NUM_PAYLOADS 5
#define WORD_ANNOUNCED 5
#define WORD_RESULTS 6
#define WORD_PUSH 7
#define WORD_PUSHED 8
#define PLACES 9

/* How rows go from a source to an owner. The announcement carries it (in AllToAll: the number of rows). */
#define NONE 0
#define PULL 1
#define PUSH 2
#define ANNOUNCE(mode) (e * 4 + (mode))

#define PAIR(writer, observer) ((writer) * N + (observer))
#define SEEN(writer, observer, place) seen[PAIR(writer, observer) * PLACES + (place)]

byte seen[N * N * PLACES]; /* what `observer` sees of what `writer` stored for it */
byte drawn = 0;            /* the last step for which is_void was drawn */
bool is_void[2];           /* by parity of the step: whether too many rows are announced; every rank finds the same */

#ifdef STRONG
#define STORE(peer, place, value) SEEN(me, peer, place) = value
#define STORES
#else
chan buffer[N * N] = [10] of { byte, byte };
#define STORE(peer, place, value) buffer[PAIR(me, peer)]!place, value
/* Stores that follow each other may enter the buffer together: it delays each as it likes. */
#define STORES atomic
#endif

/* `body` for every rank other than me. */
#define FOR_PEERS(body) \
  peer = 0; \
  do \
  :: peer == me -> peer++ \
  :: peer < N && peer != me -> body; peer++ \
  :: peer == N -> peer = 0; break \
  od
#define WHEN(condition, body) if :: condition -> body :: else fi

#ifdef FEW_MODES
/* One of three assignments in which every rank has owners of two kinds, instead of all. */
byte turn[2];
#define DRAW_TURN if :: turn[e % 2] = 0 :: turn[e % 2] = 1 :: turn[e % 2] = 2 fi
#define DRAW_MODE to[peer] = (peer + me + turn[e % 2]) % 3
#else
#define DRAW_TURN skip
#define DRAW_MODE if :: to[peer] = NONE :: to[peer] = PULL :: to[peer] = PUSH fi
#endif

#ifndef STRONG
/* Lets stores of one pair take effect: the oldest, or a payload that is the oldest of its place. */
#define ARRIVE seen[pair * PLACES + place] = value; place = 0; value = 0
#define OVERTAKE(payload) atomic { buffer[pair]??payload, value -> place = payload; ARRIVE }
proctype wire(byte pair) {
  byte place, value;
end:
  do
  :: atomic { buffer[pair]?place, value -> ARRIVE }
  :: OVERTAKE(TOKENS)
  :: OVERTAKE(ANNOUNCEMENT)
  :: OVERTAKE(POSITIONS)
  :: OVERTAKE(ROWS)
  :: OVERTAKE(RESULTS)
  od
}
#endif

proctype rank(byte me) {
  byte e = 1, peer = 0;
  byte to[N], from[N]; /* how rows go to each owner, from each source */
  bool after_void = false;

  do
  :: e > EPOCHS -> break
  :: else ->
    /* The caller fills the token buffer before it calls dispatch_send. */
    STORES { FOR_PEERS(STORE(peer, TOKENS, e)) };

    /* dispatch_send */
    atomic {
#ifndef NO_SETTLE
      WHEN(after_void, FOR_PEERS(SEEN(peer, me, WORD_RESULTS) >= e - 1));
#endif
      after_void = false
    };
    atomic {
      WHEN(drawn < e, drawn = e; if :: is_void[e % 2] = true :: is_void[e % 2] = false fi; DRAW_TURN);
      FOR_PEERS(DRAW_MODE)
    };
#ifdef WORD_FIRST
    STORES { FOR_PEERS(STORE(peer, WORD_ANNOUNCED, e); STORE(peer, ANNOUNCEMENT, ANNOUNCE(to[peer]))) };
#else
    STORES { FOR_PEERS(STORE(peer, ANNOUNCEMENT, ANNOUNCE(to[peer])); STORE(peer, WORD_ANNOUNCED, e)) };
#endif

    /* dispatch_recv */
    atomic {
      FOR_PEERS(SEEN(peer, me, WORD_ANNOUNCED) >= e);
      FOR_PEERS(from[peer] = SEEN(peer, me, ANNOUNCEMENT) % 4;
                assert(SEEN(peer, me, ANNOUNCEMENT) == ANNOUNCE(from[peer])))
    };
    if
    :: is_void[e % 2] ->
      atomic { FOR_PEERS(assert(SEEN(peer, me, ANNOUNCEMENT) == ANNOUNCE(from[peer]))) };
      STORES { FOR_PEERS(STORE(peer, WORD_RESULTS, e)) };
      after_void = true
    :: else ->
      STORES {
        FOR_PEERS(WHEN(from[peer] == PUSH, STORE(peer, POSITIONS, e); STORE(peer, WORD_PUSH, e)))
      };
      atomic { FOR_PEERS(WHEN(from[peer] == PULL, assert(SEEN(peer, me, TOKENS) == e))) };
      STORES {
        FOR_PEERS(WHEN(to[peer] == PUSH, SEEN(peer, me, WORD_PUSH) >= e;
                       assert(SEEN(peer, me, POSITIONS) == e);
                       STORE(peer, ROWS, e);
                       STORE(peer, WORD_PUSHED, e)))
      };
      atomic {
        FOR_PEERS(WHEN(from[peer] == PUSH, SEEN(peer, me, WORD_PUSHED) >= e;
                       assert(SEEN(peer, me, ROWS) == e)));
        FOR_PEERS(assert(SEEN(peer, me, ANNOUNCEMENT) == ANNOUNCE(from[peer])))
      };

      /* The experts read the rows (a view: the sources' tokens) once more and write their results. */
      atomic {
        FOR_PEERS(WHEN(from[peer] == PULL, assert(SEEN(peer, me, TOKENS) == e));
                  WHEN(from[peer] == PUSH, assert(SEEN(peer, me, ROWS) == e)))
      };
      STORES { FOR_PEERS(WHEN(from[peer] != NONE, STORE(peer, RESULTS, e))) };

      /* combine_send */
      STORES {
#ifdef REWRITE
        FOR_PEERS(WHEN(from[peer] != NONE, STORE(peer, POSITIONS, e)); STORE(peer, WORD_RESULTS, e))
#else
        FOR_PEERS(WHEN(from[peer] == PULL, STORE(peer, POSITIONS, e)); STORE(peer, WORD_RESULTS, e))
#endif
      };

      /* combine_recv */
      atomic {
#ifdef SKIP_UNUSED
        FOR_PEERS(WHEN(to[peer] != NONE, SEEN(peer, me, WORD_RESULTS) >= e));
#else
        FOR_PEERS(SEEN(peer, me, WORD_RESULTS) >= e);
#endif
        FOR_PEERS(WHEN(to[peer] != NONE,
                       assert(SEEN(peer, me, POSITIONS) == e && SEEN(peer, me, RESULTS) == e)))
      };
      atomic {
        FOR_PEERS(WHEN(to[peer] != NONE,
                       assert(SEEN(peer, me, POSITIONS) == e && SEEN(peer, me, RESULTS) == e)))
      }
    fi;
    atomic { FOR_PEERS(to[peer] = NONE; from[peer] = NONE); e++ }
  od
}

init {
  byte writer, observer;
  atomic {
    for (writer : 0 .. N - 1) {
      run rank(writer);
#ifndef STRONG
      for (observer : 0 .. N - 1) {
        if :: writer != observer -> run wire(PAIR(writer, observer)) :: else fi
      }
#endif
    }
  }
}
